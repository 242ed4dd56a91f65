"""Names that the operator and the pool must agree on: Ray resources, container ports, environment, namespaces.

Everything here is built in one function or stands in one constant; nowhere else is such a name spelled.
"""

import json
import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

HEAD_RESOURCE = "head"
ENGINE_RESOURCE = "flexpert_engine"
WORKER_RESOURCE = "flexpert_worker"

POOL_CONTROL_PORT_NAME = "pool-control"
POOL_CONTROL_PORT = 7000
UI_PORT_NAME = "ui"
UI_PORT = 7080
METRICS_PORT_NAME = "metrics"
METRICS_PORT = 7090
GRPC_PORT_NAME = "grpc"
HTTP_PORT_NAME = "http"

ENV_POD = "FLEXPERT_POD_NAME"
ENV_NODE = "FLEXPERT_NODE_NAME"
ENV_POOL = "FLEXPERT_POOL"
ENV_THREADS = "FLEXPERT_THREADS"
ENV_SERVICES = "FLEXPERT_SERVICES"
ENV_BIND_HOST = "FLEXPERT_BIND_HOST"
ENV_SOCKET_DIR = "FLEXPERT_SOCKET_DIR"
ENV_POLL_US = "FLEXPERT_POLL_MICROSECONDS"
ENV_VOLUMES_ROOT = "FLEXPERT_VOLUMES_ROOT"
ENV_POOL_CONTROL = "FLEXPERT_POOL_CONTROL"
ENV_CHECKPOINT_CACHE = "FLEXPERT_CHECKPOINT_CACHE"
ENV_MODEL_CACHE = "FLEXPERT_MODEL_CACHE"
ENV_ENGINE_WAIT = "FLEXPERT_ENGINE_WAIT_SECONDS"
ENV_MAX_WAITING = "FLEXPERT_MAX_WAITING"
ENV_TOKENS_FILE = "FLEXPERT_TOKENS_FILE"
ENV_SERVING_CERTIFICATE = "FLEXPERT_SERVING_CERTIFICATE"
ENV_CLIENT_AUTHORITIES = "FLEXPERT_CLIENT_AUTHORITIES"
ENV_POOL_CREDENTIALS = "FLEXPERT_POOL_CREDENTIALS"

CERTIFICATE_KEY = "tls.crt"
PRIVATE_KEY_KEY = "tls.key"
AUTHORITIES_KEY = "ca.crt"
POOL_KEY_KEY = "pool.key"
TOKENS_KEY = "tokens.json"
"""Keys of Secrets, and so names of files where they are mounted; the first three as cert-manager writes them."""

SECURE = "grpcs://"
"""Beginning of the address of a pool controller that is dialled with the pool's certificate; see `secured`."""

VOLUMES_ROOT = "/volumes"

LEADER_METADATA = "flexpert-leader"

POOL_CONTROLLER_ACTOR = "pool-controller"
WORKER_ACTOR_PREFIX = "worker-"
OWNER_ACTOR_PREFIX = "owner-"
FETCH_ACTOR_PREFIX = "fetch-"


def ray_namespace(pool_uid: str) -> str:
    """Ray namespace of the detached actors of the MoEDeployment with this uid."""
    return f"flexpert-{pool_uid}"


def pool_control_service(name: str) -> str:
    """Name of the Service in front of the pool controller of the MoEDeployment `name`."""
    return f"{name}-pool-control"


def pool_control_address(name: str, namespace: str) -> str:
    """Where that Service answers, as `resolve` takes it."""
    return f"{pool_control_service(name)}.{namespace}.svc:{POOL_CONTROL_PORT}"


def pool_identity(name: str, namespace: str) -> str:
    """The DNS name that certificates of the pool of the MoEDeployment `name` are for."""
    return f"{pool_control_service(name)}.{namespace}.svc"


def secured(address: str, identity: str) -> str:
    """The address of a pool controller that has to show a certificate for `identity`, whatever it is dialled by."""
    return f"{SECURE}{address}/{identity}"


def parts_of(address: str) -> tuple[str, str]:
    """An address as `resolve` takes it, and the identity that has to answer; "" where it is not `secured`."""
    if not address.startswith(SECURE):
        return address, ""
    plain, _, identity = address.removeprefix(SECURE).partition("/")
    return plain, identity


def ui_address(name: str, namespace: str) -> str:
    """Where the same Service leads to the pool's page, as `resolve` takes it; only a port-forward gets there."""
    return f"{pool_control_service(name)}.{namespace}.svc:{UI_PORT}"


def pool_of_ui(address: str) -> tuple[str, str] | None:
    """(name, namespace) of the MoEDeployment whose page an address leads to; None: it leads elsewhere."""
    service, _, rest = address.partition(".")
    name, namespace = service.removesuffix(pool_control_service("")), rest.partition(".")[0]
    return (name, namespace) if address == ui_address(name, namespace) else None


def port_variable(port_name: str) -> str:
    """Environment variable that tells a container which number its named port has, e.g. `FLEXPERT_GRPC_PORT`.

    In a cluster it is the containerPort; the laptop runtime sets an ephemeral one.
    """
    return f"FLEXPERT_{port_name.upper().replace('-', '_')}_PORT"


def port_number(port_name: str, default: int) -> int:
    """Number of this container's named port, from its environment."""
    return int(os.environ.get(port_variable(port_name), default))


def resolve(address: str) -> str:
    """Turn a Service's `name.namespace.svc:port` into an address that can be dialled.

    In a cluster DNS does that and the address comes back unchanged. The laptop runtime, which plays kube-proxy,
    keeps a JSON file of `{address: host:port}` and names it in `FLEXPERT_SERVICES`; a Service without a ready
    pod is absent from it and comes back unchanged. Call it again at every reconnect.
    """
    table = os.environ.get(ENV_SERVICES)
    if not table:
        return address
    try:
        services: dict[str, str] = json.loads(Path(table).read_text())
    except FileNotFoundError:
        return address
    return services.get(address, address)


class ModelSourceError(ValueError):
    """A model source that names no folder here; the message says what to write instead."""


def model_path(source: str) -> Path:
    """Folder of the checkpoint that a model source names, whether or not it exists.

    `file:///folder` is that folder. `pvc://claim/folder` is a folder of a PersistentVolumeClaim: the manifests mount
    the claim at `$FLEXPERT_VOLUMES_ROOT/claim`, and the laptop runtime points that variable to a folder of its own.

    Raises:
        ModelSourceError: Another scheme, or a URL that is not of one of these forms.
    """
    url = urlsplit(source)
    path = unquote(url.path)
    if url.query or url.fragment or ".." in PurePosixPath(path).parts:
        raise ModelSourceError(f"{source!r}: write the folder without '..', '?' and '#'")
    if url.scheme == "file" and url.netloc in ("", "localhost") and path.startswith("/"):
        return Path(path)
    if url.scheme == "pvc" and url.netloc and path.strip("/"):
        return Path(os.environ.get(ENV_VOLUMES_ROOT, VOLUMES_ROOT), url.netloc, path.strip("/"))
    raise ModelSourceError(
        f"{source!r}: write file:///folder, pvc://claim/folder, hf://organisation/name, "
        f"s3://bucket/folder or gs://bucket/folder"
    )
