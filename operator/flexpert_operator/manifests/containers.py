"""Parts of pod templates that the head, the groups and the ingress share: environment, volumes, resources."""

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from flexpert_operator.api.quantities import to_cores
from flexpert_operator.api.spec import Model, MoEDeployment, Resources
from flexpert_proto import names as pool_names

MODEL_VOLUME = "model"
CACHE_VOLUME = "model-cache"
CACHE_FOLDER = "/var/cache/flexpert/models"
POLL_US = 10_000
"""For how long a pool's process that has just worked polls for more: its cores are its own. Longer than a pass takes
between two layers."""

ENDPOINT_VARIABLES = {"hf": "HF_ENDPOINT", "s3": "AWS_ENDPOINT_URL", "gs": "FSSPEC_GS_ENDPOINT_URL"}
"""By the scheme of a source, the variable that its client reads for another server."""

GPU_RESOURCE = "nvidia.com/gpu"
"""Name under which Kubernetes knows GPUs, as NVIDIA's device plugin offers them."""

POOL_USER = 65532
"""User and group of the pools' image, as numbers: by a name the kubelet could not tell that it is not root."""

MEMORY_UNITS = ("Mi", "Gi", "Ti", "Pi", "Ei")

SECURITY_CONTEXT: Mapping[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""Of every container. KubeRay copies it to the init container that it adds to pods."""

POD_SECURITY: Mapping[str, Any] = {
    "automountServiceAccountToken": False,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": POOL_USER,
        "runAsGroup": POOL_USER,
        "fsGroup": POOL_USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
"""Of every pod's spec: with `SECURITY_CONTEXT` all that the Pod Security Standard *restricted* asks for. No process of
a pool talks to the API server, so none is given a token. Volumes that the pool may write are its group's."""


def variables(values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Environment entries with plain values."""
    return [{"name": name, "value": value} for name, value in values.items()]


def from_field(name: str, path: str) -> dict[str, Any]:
    """Environment entry that the kubelet fills in from a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def pool_environment(deployment: MoEDeployment, threads: int) -> list[dict[str, Any]]:
    """Environment of every container that belongs to the pool."""
    pool = {"uid": deployment.uid, "name": deployment.name, "namespace": deployment.namespace}
    return [
        *variables(
            {
                pool_names.ENV_POOL: json.dumps(pool),
                pool_names.ENV_THREADS: str(threads),
                pool_names.ENV_BIND_HOST: "0.0.0.0",
                pool_names.ENV_SOCKET_DIR: "/tmp/flexpert",
                pool_names.ENV_POLL_US: str(POLL_US),
                "OMP_WAIT_POLICY": "PASSIVE",
            }
        ),
        from_field(pool_names.ENV_POD, "metadata.name"),
        from_field(pool_names.ENV_NODE, "spec.nodeName"),
        *model_environment(deployment.model),
    ]


def resources(spec: Resources, cores: int, memory_bytes: int) -> dict[str, Any]:
    """A container's resources: what the spec says, and where it is silent, limits of `cores` and `memory_bytes`.

    A limit of ours is never below what is requested. GPUs that are requested are limited to the same number, since
    Kubernetes lends them no other way.
    """
    gpus = {GPU_RESOURCE: spec.requests[GPU_RESOURCE]} if GPU_RESOURCE in spec.requests else {}
    needed: dict[str, str | int] = {"cpu": cores, "memory": memory_quantity(memory_bytes)}
    asked = {name: larger(quantity, spec.requests.get(name, 0)) for name, quantity in needed.items()}
    limits: dict[str, str | int] = {**asked, **gpus, **spec.limits}
    requests = {**limits, **spec.requests}
    return {
        "limits": {name: str(quantity) for name, quantity in limits.items()},
        "requests": {name: str(quantity) for name, quantity in requests.items()},
    }


def larger(one: str | int, other: str | int) -> str | int:
    """The larger of two quantities."""
    return other if to_cores(other) > to_cores(one) else one


def memory_quantity(num_bytes: int) -> str:
    """Bytes as the API server writes them, rounded up to whole mebibytes: with the largest unit of which it is a
    whole number.
    """
    number, units = math.ceil(num_bytes / 2**20), list(MEMORY_UNITS)
    while number and number % 1024 == 0 and len(units) > 1:
        number //= 1024
        units.pop(0)
    return f"{number}{units[0]}" if number else "0"


def cores_of(container_resources: Mapping[str, Any]) -> int:
    """Whole cores of a container's limit, at least one."""
    return max(math.floor(to_cores(container_resources["limits"]["cpu"])), 1)


def gpus_of(container_resources: Mapping[str, Any]) -> int:
    """GPUs of a container."""
    return int(container_resources["limits"].get(GPU_RESOURCE, 0))


def gpu_environment(gpus: int) -> list[dict[str, Any]]:
    """Environment of a container with GPUs: what of the driver it uses, and that all processes count GPUs alike.

    Expert workers and page owners are told their GPU by number, and claim none from Ray: it must not hide them.
    """
    if not gpus:
        return []
    return variables(
        {
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_MODULE_LOADING": "LAZY",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
    )


def gpu_tolerations(gpus: int) -> list[dict[str, Any]]:
    """Tolerations of a pod with GPUs: their nodes are commonly tainted so that nothing else lands there."""
    return [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}] if gpus else []


def model_environment(model: Model) -> list[dict[str, Any]]:
    """Where a remote checkpoint is kept, from where it comes and by which right; Secrets are the kubelet's to read.

    A Secret that is not there does not keep pods from starting: that the source refuses us is said in the status.
    """
    if not model.remote:
        return []
    access = model.access
    plain = {pool_names.ENV_MODEL_CACHE: CACHE_FOLDER}
    if access.offline:
        plain["HF_HUB_OFFLINE"] = "1"
    if access.endpoint is not None:
        plain[ENDPOINT_VARIABLES[model.source.partition("://")[0]]] = access.endpoint
    token = access.token_secret_ref
    if token is None:
        return variables(plain)
    secret = {"secretKeyRef": {"name": token.name, "key": token.key, "optional": True}}
    return [*variables(plain), {"name": "HF_TOKEN", "valueFrom": secret}]


def model_credentials(model: Model) -> dict[str, Any]:
    """`envFrom` of a container: the Secret with the keys of a store, if one is named."""
    secret = model.access.credentials_secret_ref if model.remote else None
    return {"envFrom": [{"secretRef": {"name": secret.name, "optional": True}}]} if secret is not None else {}


def cache_volume(model: Model) -> dict[str, Any]:
    """The volume on which remote checkpoints are kept."""
    cache = model.access.cache
    if cache.claim is not None:
        return {"name": CACHE_VOLUME, "persistentVolumeClaim": {"claimName": cache.claim}}
    if cache.host_path is not None:
        return {"name": CACHE_VOLUME, "hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
    return {"name": CACHE_VOLUME, "emptyDir": {}}


def model_volumes(deployment: MoEDeployment) -> list[dict[str, Any]]:
    """The claim that holds the checkpoint, where the source names one, or the cache of a remote one."""
    if deployment.model.remote:
        return [cache_volume(deployment.model)]
    url = urlsplit(deployment.model.source)
    if url.scheme != "pvc":
        return []
    return [{"name": MODEL_VOLUME, "persistentVolumeClaim": {"claimName": url.netloc, "readOnly": True}}]


def model_mounts(deployment: MoEDeployment) -> list[dict[str, Any]]:
    """Where containers find that volume: `flexpert_proto.names` says where processes look."""
    if deployment.model.remote:
        return [{"name": CACHE_VOLUME, "mountPath": CACHE_FOLDER}]
    url = urlsplit(deployment.model.source)
    if url.scheme != "pvc":
        return []
    return [{"name": MODEL_VOLUME, "mountPath": f"{pool_names.VOLUMES_ROOT}/{url.netloc}", "readOnly": True}]
