"""How commands reach what a MoEDeployment serves: a Service, from wherever they run."""

import argparse
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from kubernetes import client

from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.errors import KubeError
from flexpert_operator.forwarding import ServicePort, forwarded
from flexpert_operator.kube import Kube, api_client
from flexpert_proto import names as pool_names
from flexpert_proto.channels import channel_to

ChannelOptions = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Reach:
    """The way to Services.

    Attributes:
        kube: The cluster.
        dial: Makes another client of it, for a forwarded port; None where there is nothing to forward through: on a
            laptop, whose Services stand in a file, and inside of a cluster.
    """

    kube: Kube
    dial: Callable[[], client.ApiClient] | None = None

    @contextmanager
    def lookup(self, address: str) -> Iterator[Callable[[], str]]:
        """Says at every connect what gRPC can dial for a Service's `name.namespace.svc:port`, while the context lasts.

        That is the address as `names.resolve` finds it; where this host does not know the name, a UNIX socket that is
        forwarded through the API server.

        Raises:
            CliError: The Service or its pods are not there, or one may not forward their ports. Any error inside the
                context says why forwarding failed, where it did.
        """
        service = ServicePort.parse(address)
        found = pool_names.resolve(address)
        if service is None or found != address or self.dial is None or is_known(address):
            yield lambda: pool_names.resolve(address)
            return
        try:
            with forwarded(self.kube, self.dial(), service) as forward:
                try:
                    yield lambda: f"unix:{forward.path}"
                except CliError as error:
                    if not forward.trouble:
                        raise
                    raise CliError(f"{error} (forwarded through the API server: {forward.trouble})") from error
        except KubeError as error:
            raise CliError(
                f"{address} is no name here, and its port cannot be forwarded through the API server: {error}"
            ) from error

    @contextmanager
    def channel(self, address: str, options: ChannelOptions = ()) -> Iterator[grpc.Channel]:
        """A gRPC channel to a Service; raises as `lookup` does, or `CredentialsError` for want of certificates."""
        plain, identity = pool_names.parts_of(address)
        with self.lookup(plain) as lookup, channel_to(lookup(), identity, options) as channel:
            yield channel


def reach_of(options: argparse.Namespace) -> Reach:
    """The way that a command's options name.

    Raises:
        CliError: There is no kubeconfig, or it cannot be used.
    """
    kube = access.connect(options)
    path = access.kubeconfig_path(options)
    if path is None or access.is_laptop(options):
        return Reach(kube)
    return Reach(kube, lambda: api_client(Path(path), options.context))


def is_known(address: str) -> bool:
    """Whether this host can resolve the name: inside of the cluster it can."""
    host, _, port = address.rpartition(":")
    try:
        socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        return False
    return True
