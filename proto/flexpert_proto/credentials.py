"""From files of mounted Secrets to what servers and clients are given: the one place that makes TLS credentials.

| variable | names a folder with | for |
|---|---|---|
| FLEXPERT_SERVING_CERTIFICATE | tls.crt, tls.key | the ports of the ingress |
| FLEXPERT_CLIENT_AUTHORITIES | ca.crt | the clients of these ports, who have to show a certificate then |
| FLEXPERT_POOL_CREDENTIALS | tls.crt, tls.key, ca.crt, pool.key | all within a pool, and its operator |

Files are read anew for every connection once they have changed, and what is open goes on. TLS 1.2 is the oldest
version spoken. Pools and their operator show each other certificates of `ca.crt`; `pool.key` is for `curve.py`.
"""

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from flexpert_proto import names
from flexpert_proto.reloading import Reloaded

Options = Sequence[tuple[str, Any]]


class CredentialsError(ValueError):
    """Files of certificates or keys that cannot be used; the message names them."""


class Pems(NamedTuple):
    """What the files hold; `authorities` is None where peers need no certificate."""

    certificate: bytes
    key: bytes
    authorities: bytes | None


@dataclass(frozen=True)
class Identity:
    """Where a process's certificate and key are, and those of the authorities whose certificates its peers show."""

    certificate: Path
    key: Path
    authorities: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""
        return tuple(filter(None, (self.certificate, self.key, self.authorities)))

    def read(self) -> Pems:
        """The files, having tried that they belong together.

        Raises:
            CredentialsError: One is missing or unusable, or the key is another certificate's.
        """
        self.context(ssl.PROTOCOL_TLS_SERVER)
        authorities = self.authorities.read_bytes() if self.authorities else None
        return Pems(self.certificate.read_bytes(), self.key.read_bytes(), authorities)

    def context(self, protocol: int) -> ssl.SSLContext:
        """A context with the files as they are now.

        Raises:
            CredentialsError: See `read`.
        """
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.authorities is not None:
                context.load_verify_locations(self.authorities)
        except OSError as error:
            files = ", ".join(map(str, self.paths))
            raise CredentialsError(f"{files}: no certificate with its key and authorities: {error}") from error
        return context


def serving_identity(environment: Mapping[str, str] = os.environ) -> Identity | None:
    """What the ingress shows its clients; None for plain ports.

    Raises:
        CredentialsError: Clients are to show certificates, but there is none to show them.
    """
    folder, authorities = (environment.get(name, "") for name in _SERVING)
    if not folder and authorities:
        raise CredentialsError(f"{names.ENV_CLIENT_AUTHORITIES} needs {names.ENV_SERVING_CERTIFICATE} beside it")
    return _identity(Path(folder), Path(authorities) if authorities else None) if folder else None


def pool_identity(environment: Mapping[str, str] = os.environ) -> Identity | None:
    """What a process shows others of its pool, and they it; None for plain connections."""
    folder = environment.get(names.ENV_POOL_CREDENTIALS, "")
    return _identity(Path(folder), Path(folder)) if folder else None


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


def server_context(identity: Identity) -> ssl.SSLContext:
    """For a server on sockets: clients are asked for a certificate if there are authorities, and `peer_is_known` tells
    whether they had one, since probes have none.

    Raises:
        CredentialsError: The files cannot be used now.
    """

    def make() -> ssl.SSLContext:
        context = identity.context(ssl.PROTOCOL_TLS_SERVER)
        if identity.authorities is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    contexts = Reloaded(identity.paths, make)
    first = make()

    def choose(connection: ssl.SSLObject, _: str, __: ssl.SSLContext) -> None:
        connection.context = contexts.get()

    first.sni_callback = choose  # called for every handshake, name or no name
    return first


def peer_is_known(connection: ssl.SSLObject | ssl.SSLSocket) -> bool:
    """Whether the peer showed a certificate; one that is not of the authorities has been refused already."""
    return connection.getpeercert(binary_form=True) is not None


def pool_channel(address: str, options: Options = ()) -> grpc.Channel:
    """A channel to a pool controller: plain, or with the pool's certificates where the address is `names.secured`.

    Raises:
        CredentialsError: The files cannot be used now.
    """
    plain, identity = names.parts_of(address)
    return channel_to(names.resolve(plain), identity, options)


def channel_to(target: str, identity: str, options: Options = ()) -> grpc.Channel:
    """The same to what is dialled already known; `identity`: whose certificate has to answer, "" for none."""
    if not identity:
        return grpc.insecure_channel(target, options=list(options))
    return grpc.secure_channel(target, _channel_credentials(), options=[*options, _for(identity)])


def pool_channel_aio(address: str, options: Options = ()) -> grpc.aio.Channel:
    """The same for asyncio."""
    plain, identity = names.parts_of(address)
    target = names.resolve(plain)
    if not identity:
        return grpc.aio.insecure_channel(target, options=list(options))
    return grpc.aio.secure_channel(target, _channel_credentials(), options=[*options, _for(identity)])


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


_SERVING = (names.ENV_SERVING_CERTIFICATE, names.ENV_CLIENT_AUTHORITIES)


def _identity(folder: Path, authorities: Path | None) -> Identity:
    return Identity(
        folder / names.CERTIFICATE_KEY,
        folder / names.PRIVATE_KEY_KEY,
        authorities / names.AUTHORITIES_KEY if authorities else None,
    )


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.authorities)


def _for(identity: str) -> tuple[str, str]:
    return "grpc.ssl_target_name_override", identity


def _channel_credentials() -> grpc.ChannelCredentials:
    identity = pool_identity()
    if identity is None:
        raise CredentialsError(f"this pool wants certificates: {names.ENV_POOL_CREDENTIALS} must name a folder of them")
    pems = identity.read()
    return grpc.ssl_channel_credentials(pems.authorities, pems.key, pems.certificate)
