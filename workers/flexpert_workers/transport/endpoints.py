"""Where sockets listen: UNIX sockets between processes of one host, TCP between hosts, there encrypted and for members
of the pool alone where it has keys. Whoever binds a ZeroMQ socket calls `bind`, whoever dials one `connect`.
"""

import ipaddress
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import zmq

from flexpert_workers.transport import curve

IPC = "ipc://"
"""Beginning of the endpoint of a UNIX socket."""
_LONGEST_SOCKET_PATH_BYTES = 107
MAX_MESSAGE_BYTES = 256 << 20
"""Of a frame; whoever sends a longer one is cut off."""
HANDSHAKE_MS = 10_000
"""After which a connection is dropped that has not said who it is."""


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(sock: "zmq.Socket[Any]", bind_host: str, socket_dir: str) -> str:
    """Bind `sock` where its peers can reach it and return the endpoint that they connect to.

    Args:
        sock: An unbound ZeroMQ socket.
        bind_host: Address to listen on. A loopback address means that all peers are on this host.
        socket_dir: Folder for UNIX sockets, made when absent; empty for TCP also on a loopback address.

    Raises:
        ValueError: A socket's path under `socket_dir` would be longer than the 107 bytes that Linux allows, or the
            pool's key cannot be used.
    """
    _bound(sock)
    if socket_dir and is_loopback(bind_host):
        endpoint = f"{IPC}{socket_path(socket_dir)}"
        sock.bind(endpoint)
        return endpoint
    key = curve.serve(sock)
    sock.bind(f"tcp://{bind_host}:*")
    port = sock.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
    return f"tcp://{dialled_host(bind_host)}:{port}{key}"


def connect(sock: "zmq.Socket[Any]", endpoint: str) -> None:
    """Dial what `bind` gave out.

    Raises:
        ValueError: The pool's key cannot be used.
        zmq.ZMQError: The endpoint is none.
    """
    _bound(sock)
    sock.connect(endpoint if endpoint.startswith(IPC) else curve.dial(sock, endpoint))


def _bound(sock: "zmq.Socket[Any]") -> None:
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)


def socket_path(socket_dir: str) -> Path:
    """A path for a new UNIX socket under `socket_dir`, which is made when absent.

    Raises:
        ValueError: It would be longer than the 107 bytes that Linux allows.
    """
    path = Path(socket_dir) / secrets.token_hex(6)
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH_BYTES:
        limit = _LONGEST_SOCKET_PATH_BYTES
        raise ValueError(f"sockets under {socket_dir} would have paths over {limit} bytes: choose a shorter folder")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def dialled_host(bind_host: str) -> str:
    """The address of this host that others dial when a socket listens on `bind_host`."""
    try:
        if not ipaddress.ip_address(bind_host).is_unspecified:
            return bind_host
    except ValueError:
        return bind_host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only makes the kernel choose the outgoing address
            address: str = probe.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())
    return address
