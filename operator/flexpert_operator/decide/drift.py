"""Did somebody else change a RayCluster, and what is to be written then? Pure; `children` asks.

`difference.covers` finds what is missing or different. What somebody *added* it cannot tell from what the API server
filled in by default: that shows in the generation, which counts every change of the spec. The operator writes down the
generation that it made; any other is somebody else's. A spec that was put right and comes back the same is left alone:
two that keep correcting each other would never end.
"""

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.decide.difference import covers, missing
from flexpert_operator.decide.ownership import owners

Json = Mapping[str, Any]

WHY_MISSING = (
    "the API server does not know RayClusters (ray.io/v1): install KubeRay 1.6 or newer with its definitions, by its "
    "own chart, or by Flexpert's with kuberay.enabled=true"
)
"""What to do where there is no KubeRay."""


def is_foreign(live: Json) -> bool:
    """Whether the spec of a RayCluster is of another generation than the operator wrote; an unmarked one is not."""
    written = annotations_of(live).get(names.WRITTEN_ANNOTATION)
    return written is not None and written != str(live["metadata"].get("generation", written))


def is_tolerated(live: Json) -> bool:
    """Whether a spec that was put right before has come back the same."""
    return annotations_of(live).get(names.RESTORED_ANNOTATION) == digest_of(live["spec"])


def dropped(live: Json, wanted: Json) -> tuple[str, ...]:
    """Fields of a RayCluster that were written and are not there: an older KubeRay's definition does not have them.

    None of one that was not written as it is wanted now, or that somebody else has changed since.
    """
    written, now = (annotations_of(one).get(names.DIGEST_ANNOTATION) for one in (live, wanted))
    return () if written != now or is_foreign(live) else tuple(missing(live["spec"], wanted["spec"], "spec"))


def why_dropped(cluster: str, fields: Collection[str]) -> str:
    """What to do about fields that are dropped."""
    needed = "1.7" if any(field.startswith("spec.gcsFaultToleranceOptions") for field in fields) else "1.6"
    return (
        f"the API server drops {', '.join(sorted(fields))} of RayCluster {cluster}: KubeRay's definitions of its kinds "
        f"are older than {needed}. Upgrade KubeRay and its definitions, which Helm leaves as they are"
    )


def replacement(live: Json, wanted: Json) -> dict[str, Any]:
    """The whole RayCluster to be written over `live`: our spec, and whatever others said in its metadata."""
    body: dict[str, Any] = copy.deepcopy(dict(live))
    body["spec"] = wanted["spec"]
    foreign, metadata = is_foreign(live), body["metadata"]
    for key in ("labels", "annotations"):
        metadata[key] = {**(metadata.get(key) or {}), **wanted["metadata"][key]}
    metadata["ownerReferences"] = owners(live, wanted)
    changes = foreign or not covers(live["spec"], wanted["spec"])
    metadata["annotations"][names.WRITTEN_ANNOTATION] = str(metadata.get("generation", 0) + changes)
    if foreign:
        metadata["annotations"][names.RESTORED_ANNOTATION] = digest_of(live["spec"])
    return body


def annotated(live: Json, changes: Mapping[str, str | None]) -> dict[str, Any]:
    """The whole RayCluster with other annotations; those that are None are taken away."""
    found = {**annotations_of(live), **changes}
    annotations = {key: value for key, value in found.items() if value is not None}
    return {**live, "metadata": {**live["metadata"], "annotations": annotations}}


def digest_of(spec: Json) -> str:
    """A short digest of a spec, but for sizes: these change without anybody else's doing."""
    plain = copy.deepcopy(dict(spec))
    for group in plain.get("workerGroupSpecs") or ():
        for key in ("replicas", "scaleStrategy"):
            group.pop(key, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def annotations_of(live: Json) -> Json:
    """The annotations of an object."""
    return live["metadata"].get("annotations") or {}
