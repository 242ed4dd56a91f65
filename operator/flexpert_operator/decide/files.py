"""What the status says of the model's files: `status.model`, and of a source that changed. Pure; `status` calls it."""

from typing import Any

from flexpert_operator.api.fields import Json
from flexpert_operator.api.spec import Model, MoEDeployment
from flexpert_operator.decide.model import facts_of
from flexpert_operator.decide.observation import ModelFiles, Observation

STEP_PERCENT = 1
"""Of the bytes: by so much they have to change before the status is written for them."""


def model_status(deployment: MoEDeployment, observed: Observation, old: Json) -> dict[str, Any]:
    """`status.model`; what is not known now stays as it was."""
    served = observed.bound_model or deployment.model
    found: dict[str, Any] = {"source": served.source}
    if served.source.startswith("hf://"):
        found["revision"] = served.revision
    facts = facts_of(observed)
    if facts is None:
        same = all(old.get(name) == value for name, value in found.items())
        return dict(old) if same else found
    found |= {"architecture": facts.architecture, "digest": facts.digest}
    resolved = served.resolved or facts.resolved
    found |= {"resolvedRevision": resolved} if resolved else {}
    return found | (files_status(observed.pool.files, old) if observed.pool is not None else {})


def files_status(files: ModelFiles, old: Json) -> dict[str, Any]:
    """How far the files are; nothing of a model in a folder but whether it has changed."""
    newer = {"newerRevision": files.newer_revision} if files.newer_revision else {}
    if not files.nodes:
        return newer
    before, step = old.get("bytesDone"), files.bytes_total * STEP_PERCENT / 100
    creeps = files.coming and before is not None and 0 <= files.bytes_done - before < step
    return newer | {
        "phase": files.phase,
        "bytesDone": before if creeps else files.bytes_done,
        "bytesTotal": files.bytes_total,
        "nodesReady": files.nodes_ready,
        "nodes": files.nodes,
    }


def changed_message(served: Model, newer: str) -> str:
    """What a user is to know and may do when the source is not what is served any more."""
    if served.remote:
        what = f"{served.source} (revision {served.revision}) names {newer} now; {served.resolved} goes on being served"
    else:
        what = f"the files of {served.source} were changed; what was read before goes on being served, but workers and "
        what += "engines that start from now on refuse them"
    return f"{what}. Make another MoEDeployment for what is there now" + ("" if served.remote else ", or put them back")
