"""Whose is an object that has a name which the operator uses? Pure; `cached`, `children` and `observe` ask.

Ours is what our MoEDeployment controls (by uid: another one may have had its name), and what nobody controls and
carries our label: a restore from a backup, or a colleague's `--cascade=orphan`, leaves that, and it is adopted.
"""

from collections.abc import Mapping
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.errors import ChildTaken

Json = Mapping[str, Any]


def is_ours(live: Json, uid: str, name: str) -> bool:
    """Whether an object belongs to the MoEDeployment of a uid and a name."""
    controller = controller_of(live)
    if controller is not None:
        return bool(controller["uid"] == uid)
    return (live["metadata"].get("labels") or {}).get(names.DEPLOYMENT_LABEL) == name


def is_controlled(live: Json, uid: str) -> bool:
    """Whether the object of a uid controls this one."""
    controller = controller_of(live)
    return controller is not None and controller["uid"] == uid


def check_ours(plural: str, live: Json, wanted: Json) -> None:
    """Have an object be ours before it is changed; `wanted` is what we would write.

    Raises:
        ChildTaken: It is not, and nothing may be done to it.
    """
    owner = controller_of(wanted)
    assert owner is not None, "a child has its MoEDeployment as controller"
    if is_ours(live, owner["uid"], owner["name"]):
        return
    controller = controller_of(live)
    why = f"has no owner and not the label {names.DEPLOYMENT_LABEL}={owner['name']}"
    if controller is not None:
        why = f"is controlled by {controller['kind']} {controller['name']} (uid {controller['uid']})"
    raise ChildTaken(f"{plural} {live['metadata']['namespace']}/{live['metadata']['name']} {why}")


def owners(live: Json, wanted: Json) -> list[Json]:
    """The owner references to write: those that others have put there, and ours."""
    ours = controller_of(wanted)
    assert ours is not None, "a child has its MoEDeployment as controller"
    found = [ours if one["uid"] == ours["uid"] else one for one in live["metadata"].get("ownerReferences") or ()]
    return found if ours in found else [*found, ours]


def controller_of(body: Json) -> Json | None:
    """The owner reference of an object's controller."""
    references = body["metadata"].get("ownerReferences") or ()
    return next((one for one in references if one.get("controller")), None)
