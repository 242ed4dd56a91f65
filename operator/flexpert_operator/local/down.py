"""`flexpert local down`: deletes the MoEDeployments, then ends every process that `up` and the runtime started.

It works whatever is left: with the API or the operator dead it skips what they would do, and ends the containers of a
dead runtime by the file that it kept.
"""

import shutil
import time
from collections.abc import Callable

from flexpert_operator.errors import KubeError, KubeNotFound
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local import processes, state
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.processes import ProcessId
from flexpert_operator.local.runtime import books
from flexpert_operator.local.state import PARTS

_POLL_S = 0.2
_PART_GRACE_S = 20.0
_POD_GRACE_S = 5.0
_ALL_DEPLOYMENTS = "/apis/flexpert.io/v1alpha1/moedeployments"


def down(layout: Layout, wait_s: float, tell: Callable[[str], None]) -> bool:
    """Take the laptop cluster down.

    Args:
        layout: Its state folder; logs and volumes stay there.
        wait_s: Time that MoEDeployments get to drain.
        tell: Takes a line for the user.

    Returns:
        Whether anything ran.
    """
    with state.locked(layout):
        parts = state.read_parts(layout)
        alive = state.living(parts)
        if alive.keys() == set(PARTS):
            _delete_deployments(layout, wait_s, tell)
        dead = ", ".join(part for part in PARTS if part not in state.living(parts))
        if alive and dead:
            tell(f"not running any more: {dead}; ending the rest without draining")
        pods = books.load(layout.pods)
        for part in reversed(PARTS):
            _end(parts.get(part))
        books.end_pods(books.load(layout.pods).values(), _POD_GRACE_S)
        _clean(layout)
        return bool(alive or pods)


def _delete_deployments(layout: Layout, wait_s: float, tell: Callable[[str], None]) -> None:
    kube = Kube(api_client(layout.kubeconfig))
    deadline = time.monotonic() + wait_s
    asked: set[str] = set()
    try:
        while found := kube.request("GET", _ALL_DEPLOYMENTS)["items"]:
            for metadata in (item["metadata"] for item in found if item["metadata"]["uid"] not in asked):
                tell(f"deleting {metadata['namespace']}/{metadata['name']}")
                kube.delete(MOE_DEPLOYMENTS, metadata["namespace"], metadata["name"])
                asked.add(metadata["uid"])
            if state.living(state.read_parts(layout)).keys() != set(PARTS):
                return
            if time.monotonic() > deadline:
                tell(f"still draining after {wait_s:.0f} s: ending it all the same")
                return
            time.sleep(_POLL_S)
    except KubeNotFound:
        return
    except KubeError as error:
        tell(f"the API does not answer ({error}): ending everything without draining")


def _end(process: ProcessId | None) -> None:
    if process is not None:
        processes.end_sessions([process], _PART_GRACE_S)


def _clean(layout: Layout) -> None:
    shutil.rmtree(layout.scratch, ignore_errors=True)
    for file in (
        layout.parts,
        layout.pods,
        layout.services,
        layout.metrics,
        layout.api_ready,
        layout.api_state,
        layout.kubeconfig,
    ):
        file.unlink(missing_ok=True)
    for secret in (layout.token, layout.ray_token):
        secret.unlink(missing_ok=True)
