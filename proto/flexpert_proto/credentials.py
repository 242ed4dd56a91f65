"""From files of mounted Secrets to what servers and clients are given: the one place that makes credentials of them
(`channels.py` does so for gRPC).

| variable | names a folder with | for |
|---|---|---|
| FLEXPERT_SERVING_CERTIFICATE | tls.crt, tls.key | the ports of the ingress |
| FLEXPERT_CLIENT_AUTHORITIES | ca.crt | the clients of these ports, who have to show a certificate then |
| FLEXPERT_POOL_CREDENTIALS | tls.crt, tls.key, ca.crt, pool.key | all within a pool, and its operator |

`pool.key` is what ZeroMQ's keys are derived from, which knows no certificates; the operator needs none. It holds a key
a line: servers take the first when they start, and clients whichever the server has.

Files are read anew for every connection once they have changed, and what is open goes on. TLS 1.2 is the oldest
version spoken. Pools and their operator show each other certificates of `ca.crt`.
"""

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flexpert_proto import names
from flexpert_proto.reloading import Reloaded

SHORTEST_POOL_KEY = 32
"""Bytes."""


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


def pool_keys(environment: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """The secrets that all of a pool share, in the file's order; none for plain connections.

    There are two of them while the one takes the other's place. A file that is no text is one key.

    Raises:
        CredentialsError: There are credentials, and no key among them, or one that is too short.
    """
    folder = environment.get(names.ENV_POOL_CREDENTIALS, "")
    if not folder:
        return ()
    path = Path(folder) / names.POOL_KEY_KEY
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error}; put there what `openssl rand -hex 32` says") from error
    keys = tuple(data.split()) if data.isascii() else (data,)
    if not keys or any(len(key) < SHORTEST_POOL_KEY for key in keys):
        raise CredentialsError(f"{path} has a key that is shorter than {SHORTEST_POOL_KEY} bytes")
    return keys


def pool_server_context() -> ssl.SSLContext | None:
    """For a server on sockets within a pool, which every client has to show a certificate; None for plain connections.

    Raises:
        CredentialsError: The files cannot be used now.
    """
    identity = pool_identity()
    if identity is None:
        return None
    context = server_context(identity)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def pool_client_context(environment: Mapping[str, str] = os.environ) -> tuple[ssl.SSLContext, str] | None:
    """For a client of that, with the name that the server's certificate must have; None for plain connections.

    Raises:
        CredentialsError: The files cannot be used now, or this process is of no pool.
    """
    identity = pool_identity(environment)
    if identity is None:
        return None
    try:
        pool = json.loads(environment[names.ENV_POOL])
        expected = names.pool_identity(pool["name"], pool["namespace"])
    except (KeyError, TypeError, ValueError) as error:
        raise CredentialsError(f"{names.ENV_POOL} does not say whose certificates to expect: {error!r}") from error
    return identity.context(ssl.PROTOCOL_TLS_CLIENT), expected


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


_SERVING = (names.ENV_SERVING_CERTIFICATE, names.ENV_CLIENT_AUTHORITIES)


def _identity(folder: Path, authorities: Path | None) -> Identity:
    return Identity(
        folder / names.CERTIFICATE_KEY,
        folder / names.PRIVATE_KEY_KEY,
        authorities / names.AUTHORITIES_KEY if authorities else None,
    )
