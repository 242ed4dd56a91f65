"""A Service's port on this host, through the API server: what `kubectl port-forward` does, on a UNIX socket.

The commands use it where a Service's name does not resolve (`cli/reach.py`). Each connection goes to a pod that is
ready by then, so whoever connects anew after a pod's end comes to the next one. The socket lies in a folder of its own,
which nobody but this user can enter: what stands behind it may not ask who calls.
"""

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward
from websocket import WebSocketBadStatusException

from flexpert_operator.errors import KubeError, KubeNotFound, KubeUnavailable
from flexpert_operator.kube import PODS, SERVICES, Kube, Object, error_of

_CHUNK_BYTES = 2**16
_JOIN_S = 5.0


@dataclass(frozen=True)
class ServicePort:
    """A port of a Service, as `name.namespace.svc:port` names it."""

    name: str
    namespace: str
    port: int

    @staticmethod
    def parse(address: str) -> "ServicePort | None":
        """The port that an address names; None when it is no Service's."""
        host, _, port = address.rpartition(":")
        parts = host.split(".")
        if len(parts) < 3 or parts[2] != "svc" or not port.isdigit():
            return None
        return ServicePort(parts[0], parts[1], int(port))


class Forward:
    """A UNIX socket, each connection of which ends at a ready pod behind the Service."""

    def __init__(self, kube: Kube, api: client.ApiClient, service: ServicePort) -> None:
        """Begin to listen; a first connection is made at once, and kept for whoever comes first.

        Args:
            kube: Finds the Service and its pods.
            api: A client of its own: a stream's calls change it for a moment.
            service: What to forward.

        Raises:
            KubeError: There is no such Service or no pod that is ready, or one may not forward its ports.
        """
        self._kube = kube
        self._api = client.CoreV1Api(api)
        self._service = service
        self._trouble = ""
        self._waiting: Any = self._connect()
        self._folder = Path(tempfile.mkdtemp(prefix="flexpert-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "s"))
        self._listener.listen()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name=f"forward {service.name}", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The socket."""
        return self._folder / "s"

    @property
    def trouble(self) -> str:
        """Why a connection failed last, or empty."""
        return self._trouble

    def close(self) -> None:
        """End every connection, and take the socket away."""
        end(self._listener)
        self._listener.close()
        self._thread.join(_JOIN_S)
        with self._lock:
            end(*self._open)
        if self._waiting is not None:
            self._waiting.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            try:
                there, self._waiting = self._waiting or self._connect(), None
            except KubeError as failure:
                self._trouble = str(failure)
                here.close()
                continue
            threading.Thread(target=self._carry, args=(here, there), daemon=True).start()

    def _connect(self) -> Any:
        pod, port = target_of(self._kube, self._service)
        try:
            return portforward(
                self._api.connect_get_namespaced_pod_portforward, pod, self._service.namespace, ports=str(port)
            )
        except ApiException as refusal:
            raise refused(refusal, f"forwarding port {port} of pod {pod}") from refusal

    def _carry(self, here: socket.socket, forwarded: Any) -> None:
        """Carry bytes both ways until either end closes."""
        port = next(iter(forwarded.local_ports))
        there: socket.socket = forwarded.socket(port)
        with self._lock:
            self._open.add(here)

        def answers() -> None:
            copy(there, here)
            self._trouble = (forwarded.error(port) or "").strip() or self._trouble
            end(here, there)

        back = threading.Thread(target=answers, daemon=True)
        back.start()
        copy(here, there)
        end(there)  # not `here`: whoever reads it sees the end when it is known why
        back.join()
        with self._lock:
            self._open.discard(here)
        here.close()
        forwarded.close()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends, or either breaks."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)


def end(*sockets: socket.socket) -> None:
    """Have whoever reads them see the end."""
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def forwarded(kube: Kube, api: client.ApiClient, service: ServicePort) -> Iterator[Forward]:
    """A `Forward`, ended with the context; raises as it does."""
    forward = Forward(kube, api, service)
    try:
        yield forward
    finally:
        forward.close()


def target_of(kube: Kube, service: ServicePort) -> tuple[str, int]:
    """A ready pod behind a Service, and the port of it that the Service's port stands for.

    Raises:
        KubeNotFound: There is no such Service, or it has no such port.
        KubeUnavailable: No pod behind it is ready.
    """
    spec = kube.get(SERVICES, service.namespace, service.name)["spec"]
    ports = [port for port in spec.get("ports") or () if port["port"] == service.port]
    if not ports:
        raise KubeNotFound(f"Service {service.name} has no port {service.port}")
    selector = ",".join(f"{key}={value}" for key, value in (spec.get("selector") or {}).items())
    wanted = ports[0].get("targetPort") or service.port
    for pod in kube.list(PODS, service.namespace, selector) if selector else ():
        number = port_of(pod, wanted)
        if is_ready(pod) and number is not None:
            return pod["metadata"]["name"], number
    raise KubeUnavailable(f"no pod behind Service {service.name} is ready")


def is_ready(pod: Object) -> bool:
    """Whether a Service would send to a pod."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def port_of(pod: Object, wanted: int | str) -> int | None:
    """A container port by its number or name; None where the pod has none of this name."""
    if isinstance(wanted, int):
        return wanted
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            if port.get("name") == wanted:
                return int(port["containerPort"])
    return None


def refused(refusal: ApiException, what: str) -> KubeError:
    """The exception of our own tree for a stream that the API server, or the way to it, refused.

    The client's message is the text of the exception that it caught, with all headers; what was said is in that one.
    """
    cause = refusal.__context__
    if not isinstance(cause, WebSocketBadStatusException):
        return KubeUnavailable(f"{what}: {cause or refusal.reason}")
    return error_of(cause.status_code, f"{what}: {said(cause.resp_body) or f'status {cause.status_code}'}")


def said(body: bytes | None) -> str:
    """The message of a `Status` object, else the text itself."""
    text = (body or b"").decode(errors="replace")
    try:
        status = json.loads(text)
    except ValueError:
        return text.strip()
    return str(status.get("message", text)) if isinstance(status, Mapping) else text
