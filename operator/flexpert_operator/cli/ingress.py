"""The ingress that `generate` and `bench serve` talk to: where it is, and what it is shown and has to show."""

import argparse
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.reach import reach_of

ENV_TOKEN = "FLEXPERT_TOKEN"


@dataclass(frozen=True)
class Tls:
    """How to speak TLS; without it connections are plain.

    Attributes:
        authorities: File with those that the server's certificate may be of; None: those that this host trusts.
        certificate: File with a certificate to show; None: none.
        key: File with its key; None: it is in the same file.
        server_name: Name that the server's certificate must have; "": the one that is dialled.
    """

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def context(self) -> ssl.SSLContext:
        """For Python's sockets.

        Raises:
            CliError: A file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.authorities)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            files = ", ".join(str(file) for file in (self.authorities, self.certificate, self.key) if file is not None)
            raise CliError(f"{files}: no certificate with its key and authorities: {error}") from error
        return context

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For gRPC; raises as `context` does."""
        self.context()
        key = self.key or self.certificate
        return grpc.ssl_channel_credentials(
            self.authorities.read_bytes() if self.authorities else None,
            key.read_bytes() if key else None,
            self.certificate.read_bytes() if self.certificate else None,
        )


@dataclass(frozen=True)
class Ingress:
    """Where an ingress is.

    Attributes:
        lookup: Says what to dial, at every connect: `host:port`, or `unix:PATH`.
        tls: How to speak TLS with it; None: not at all.
    """

    lookup: Callable[[], str]
    tls: Tls | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is shown to an ingress whose MoEDeployment has a `security`."""
    group = parser.add_argument_group("who asks")
    tokens = group.add_mutually_exclusive_group()
    tokens.add_argument(
        "--token-file", type=Path, metavar="FILE", help="with the bearer token (default: $FLEXPERT_TOKEN)"
    )
    tokens.add_argument("--token", help="the bearer token itself, for this host's other users to see")
    group.add_argument("--tls", action="store_true", help="speak TLS (default: where the MoEDeployment says so)")
    group.add_argument(
        "--ca",
        "--ca-certificate",
        type=Path,
        metavar="FILE",
        help="authorities of the server's certificate; means --tls",
    )
    group.add_argument("--cert", type=Path, metavar="FILE", help="certificate to show; means --tls")
    group.add_argument("--key", type=Path, metavar="FILE", help="its key (default: in the same file)")
    group.add_argument(
        "--server-name", default="", metavar="NAME", help="that the server's certificate is for (default: as dialled)"
    )


def token_of(options: argparse.Namespace) -> str:
    """The bearer token that was given, or "".

    Raises:
        CliError: Its file cannot be read, or there is none in it.
    """
    if options.token_file is None:
        return str(options.token or os.environ.get(ENV_TOKEN, ""))
    try:
        token = str(options.token_file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--token-file {options.token_file}: {error}") from error
    if not token or not token.isprintable() or not token.isascii():
        raise CliError(f"--token-file {options.token_file}: has to hold one token")
    return token


def tls_of(options: argparse.Namespace) -> Tls | None:
    """How to speak TLS, as far as options say; None: they do not ask for it.

    Raises:
        CliError: A key without its certificate.
    """
    if options.key is not None and options.cert is None:
        raise CliError("--key needs --cert")
    if not (options.tls or options.ca or options.cert or options.server_name):
        return None
    return Tls(options.ca, options.cert, options.key, options.server_name)


@contextmanager
def ingress_of(options: argparse.Namespace, protocol: str) -> Iterator[Ingress]:
    """The ingress of the MoEDeployment that `options.name` says, else of the only one.

    Its certificate has to be for its Service's name, however it is reached, or for the one that `--server-name` says.

    Args:
        options: Those of `add_options` and `access.add_options`, and `name`.
        protocol: `grpc` or `http`.

    Raises:
        CliError: There is no such MoEDeployment, or it cannot be reached.
    """
    reach = reach_of(options)
    deployment = access.find_deployment(reach.kube, options.namespace, options.name)
    endpoints = (deployment.get("status") or {}).get("endpoints")
    if not endpoints:
        raise CliError("the MoEDeployment has no endpoint yet: wait until it is Ready (`flexpert status`)")
    tls = tls_of(options)
    if tls is None and (deployment["spec"].get("security") or {}).get("tls"):
        tls = Tls()
    if tls is not None and not tls.server_name:
        tls = replace(tls, server_name=endpoints[protocol].rpartition(":")[0])
    with reach.lookup(endpoints[protocol]) as lookup:
        yield Ingress(lookup, tls)
