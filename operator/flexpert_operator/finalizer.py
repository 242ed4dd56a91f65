"""Our finalizer on a MoEDeployment: set before anything is made for it, taken off when all of that is gone."""

from flexpert_operator.api import names
from flexpert_operator.cached import CachedKube
from flexpert_operator.errors import KubeNotFound
from flexpert_operator.kube import MOE_DEPLOYMENTS, Object


def add_finalizer(kube: CachedKube, body: Object) -> Object:
    """The object with our finalizer.

    Raises:
        KubeConflict: It has changed since it was seen.
    """
    finalizers = body["metadata"].get("finalizers") or []
    return body if names.FINALIZER in finalizers else _write(kube, body, [*finalizers, names.FINALIZER])


def remove_finalizer(kube: CachedKube, body: Object) -> None:
    """Let an object go; it may be gone already.

    Raises:
        KubeConflict: It has changed since it was seen.
    """
    finalizers = body["metadata"].get("finalizers") or []
    try:
        _write(kube, body, [one for one in finalizers if one != names.FINALIZER])
    except KubeNotFound:
        kube.forget(MOE_DEPLOYMENTS, body)


def is_still_there(kube: CachedKube, body: Object) -> bool:
    """Asks the API server whether an object exists: nothing is made anew for one whose deletion was missed."""
    metadata = body["metadata"]
    found = kube.look(MOE_DEPLOYMENTS, metadata["namespace"], metadata["name"])
    if found is not None and found["metadata"]["uid"] == metadata["uid"]:
        return True
    kube.forget(MOE_DEPLOYMENTS, body)
    return False


def _write(kube: CachedKube, body: Object, finalizers: list[str]) -> Object:
    metadata = body["metadata"]
    patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
    return kube.patch(MOE_DEPLOYMENTS, metadata["namespace"], metadata["name"], patch)
