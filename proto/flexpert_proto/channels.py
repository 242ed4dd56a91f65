"""gRPC with certificates: channels to pool controllers and ingresses, and what servers listen with."""

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from flexpert_proto import names
from flexpert_proto.credentials import CredentialsError, Identity, Pems, pool_identity
from flexpert_proto.reloading import Reloaded

Options = Sequence[tuple[str, Any]]


def rpc_server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """For a gRPC server; clients have to show a certificate if there are authorities for that.

    Raises:
        CredentialsError: The files cannot be used now.
    """
    pems = Reloaded(identity.paths, identity.read)
    told = pems.get()

    def news() -> Any:
        nonlocal told
        now = pems.get()
        if now is told:
            return None
        told = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(_configuration(told), news, identity.authorities is not None)


def client_channel(
    target: str, credentials: grpc.ChannelCredentials | None, server_name: str = "", options: Options = ()
) -> grpc.Channel:
    """A client's channel to an ingress: plain without credentials; `server_name`: whose certificate has to answer, ""
    for that of the host that is dialled.
    """
    if credentials is None:
        return grpc.insecure_channel(target, options=list(options))
    return grpc.secure_channel(target, credentials, options=[*options, *_named(server_name)])


def client_channel_aio(
    target: str, credentials: grpc.ChannelCredentials | None, server_name: str = "", options: Options = ()
) -> grpc.aio.Channel:
    """The same for asyncio."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=list(options))
    return grpc.aio.secure_channel(target, credentials, options=[*options, *_named(server_name)])


def pool_channel(address: str, options: Options = ()) -> grpc.Channel:
    """A channel to a pool controller: plain, or with the pool's certificates where the address is `names.secured`.

    Raises:
        CredentialsError: The files cannot be used now.
    """
    plain, identity = names.parts_of(address)
    return channel_to(names.resolve(plain), identity, options)


def channel_to(target: str, identity: str, options: Options = ()) -> grpc.Channel:
    """The same to what is dialled already known; `identity`: whose certificate has to answer, "" for none."""
    return client_channel(target, _channel_credentials() if identity else None, identity, options)


def pool_channel_aio(address: str, options: Options = ()) -> grpc.aio.Channel:
    """The same for asyncio."""
    plain, identity = names.parts_of(address)
    return client_channel_aio(names.resolve(plain), _channel_credentials() if identity else None, identity, options)


def add_pool_port(server: "grpc.aio.Server | grpc.Server", address: str) -> int:
    """Have a server of the pool listen at `host:port`, with the pool's certificates if there are any; its port.

    Raises:
        CredentialsError: The files cannot be used.
        RuntimeError: The address is taken.
    """
    identity = pool_identity()
    if identity is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, rpc_server_credentials(identity))


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.authorities)


def _named(server_name: str) -> Options:
    return [("grpc.ssl_target_name_override", server_name)] if server_name else []


def _channel_credentials() -> grpc.ChannelCredentials:
    identity = pool_identity()
    if identity is None:
        raise CredentialsError(f"this pool wants certificates: {names.ENV_POOL_CREDENTIALS} must name a folder of them")
    pems = identity.read()
    return grpc.ssl_channel_credentials(pems.authorities, pems.key, pems.certificate)
