"""The configuration of an ingress, and how `__main__` reads it from the environment."""

import json
from collections.abc import Mapping

import msgspec

from flexpert_proto import names
from flexpert_proto.credentials import Identity, serving_identity


class IngressConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingress is told.

    Attributes:
        pool_control: Address of the pool controller, as `names.resolve` takes it.
        model_name: Name of the MoEDeployment that is served; "" to take the pool's own.
        namespace: Namespace of the MoEDeployment, for metrics.
        pod: Name of the pod, for what it reports; empty where there is none.
        bind_host: Interface to listen on.
        grpc_port: 0 for any free one.
        http_port: 0 for any free one.
        max_streams: Streams open at once; one more is refused.
        max_waiting: New requests that wait for an engine at once; one more is refused.
        engine_wait_s: How long a request waits for an engine, at its start and after the loss of one.
        hang_timeout_s: An engine that says nothing for so long, though asked, counts as lost.
        drain_grace_s: How long open streams may go on after SIGTERM.
        max_request_bytes: A larger request is refused.
        stall_timeout_s: A client that takes nothing of its stream for so long is cut off.
        identity: What is shown to clients, and whose certificates they have to show; None for plain ports.
        tokens_file: File of the bearer tokens that may come in (see `tokens.py`); "" to let everybody in.
    """

    pool_control: str
    model_name: str = ""
    namespace: str = ""
    pod: str = ""
    bind_host: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int = 0
    max_streams: int = 1024
    max_waiting: int = 1024
    engine_wait_s: float = 60.0
    hang_timeout_s: float = 60.0
    drain_grace_s: float = 25.0
    max_request_bytes: int = 4 * 2**20
    stall_timeout_s: float = 60.0
    identity: Identity | None = None
    tokens_file: str = ""


def from_environment(environment: Mapping[str, str]) -> IngressConfig:
    """The configuration that a manifest gave to this container.

    Raises:
        ValueError: A variable is missing or malformed; the message names it.
    """
    if not environment.get(names.ENV_POOL_CONTROL):
        raise ValueError(f"{names.ENV_POOL_CONTROL} is not set: give it the address of the pool controller")
    defaults = IngressConfig(pool_control=environment[names.ENV_POOL_CONTROL])
    return msgspec.structs.replace(
        defaults,
        model_name=_of_pool(environment, "name"),
        namespace=_of_pool(environment, "namespace"),
        pod=environment.get(names.ENV_POD, ""),
        bind_host=environment.get(names.ENV_BIND_HOST, "0.0.0.0"),
        grpc_port=_number(environment, names.port_variable(names.GRPC_PORT_NAME), 9000),
        http_port=_number(environment, names.port_variable(names.HTTP_PORT_NAME), 8000),
        max_waiting=_number(environment, names.ENV_MAX_WAITING, defaults.max_waiting),
        engine_wait_s=_number(environment, names.ENV_ENGINE_WAIT, round(defaults.engine_wait_s)),
        identity=serving_identity(environment),
        tokens_file=environment.get(names.ENV_TOKENS_FILE, ""),
    )


def _of_pool(environment: Mapping[str, str], field: str) -> str:
    """A field of the pool's description; empty where there is none."""
    pool = environment.get(names.ENV_POOL, "")
    if not pool:
        return ""
    try:
        return str(json.loads(pool)[field])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{names.ENV_POOL} must be JSON like {{"uid", "name", "namespace"}}: {error}') from error


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError as error:
        raise ValueError(f"{name} must be a whole number: {error}") from error
