"""Reading Kubernetes objects; used by the deciding modules beside it."""

import hashlib
import json
import random
from datetime import UTC, datetime

from flexpert_operator.local.runtime.values import Object

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_LENGTH = 5


def uid_of(obj: Object) -> str:
    """An object's uid."""
    return str(obj["metadata"]["uid"])


def key_of(obj: Object) -> tuple[str, str]:
    """An object's namespace and name."""
    return str(obj["metadata"].get("namespace", "default")), str(obj["metadata"]["name"])


def is_deleted(obj: Object) -> bool:
    """Whether its deletion has been asked for."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def label_of(obj: Object, name: str) -> str:
    """A label's value, empty when it is not there."""
    return str((obj["metadata"].get("labels") or {}).get(name, ""))


def is_owned_by(obj: Object, owner: Object) -> bool:
    """Whether `owner` is among the object's owners."""
    references = obj["metadata"].get("ownerReferences") or []
    return any(reference["uid"] == uid_of(owner) for reference in references)


def owner_reference(owner: Object) -> Object:
    """The reference of an object that `owner` controls."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def has_condition(obj: Object, kind: str) -> bool:
    """Whether a condition of this type is True."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def is_ready(pod: Object) -> bool:
    """Whether a Pod counts as ready: Services lead to it."""
    return has_condition(pod, "Ready") and not is_deleted(pod)


def phase_of(pod: Object) -> str:
    """A Pod's phase."""
    return str((pod.get("status") or {}).get("phase", "Pending"))


def timestamp(seconds: float) -> str:
    """Kubernetes' form of a time, which has whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, is_true: bool, reason: str, now: float, before: Object, message: str = "") -> Object:
    """A condition for the status of `before`, whose transition time stands while its status does."""
    status = "True" if is_true else "False"
    known = {item["type"]: item for item in (before.get("status") or {}).get("conditions") or []}
    same = kind in known and known[kind]["status"] == status
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": known[kind]["lastTransitionTime"] if same else timestamp(now),
    }


def name_suffix(rng: random.Random) -> str:
    """Random end of a generated name."""
    return "".join(rng.choice(_SUFFIX_LETTERS) for _ in range(_SUFFIX_LENGTH))


def digest(value: object) -> str:
    """Short digest of a JSON value, such as a pod template."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
