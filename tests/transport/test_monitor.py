"""What watches connections: its news, and that it never stops ZeroMQ's own thread."""

import gc
import threading
from typing import Any

import pytest
import zmq

from flexpert_workers.transport import ConnectionMonitor, PeerEvent, bind, connect

WAIT_MS = 30_000


@pytest.fixture
def context() -> Any:
    with zmq.Context() as context:
        yield context


def server(context: "zmq.Context[Any]", folder: Any) -> "tuple[zmq.Socket[Any], str]":
    sock = context.socket(zmq.ROUTER, socket_class=zmq.Socket)
    sock.linger = 0
    return sock, bind(sock, "127.0.0.1", str(folder))


def watched(context: "zmq.Context[Any]", endpoint: str) -> "tuple[zmq.Socket[Any], ConnectionMonitor]":
    sock = context.socket(zmq.DEALER, socket_class=zmq.Socket)
    sock.linger = 0
    monitor = ConnectionMonitor(sock)
    connect(sock, endpoint)
    assert monitor.socket.poll(WAIT_MS)
    assert monitor.events() == [PeerEvent.CONNECTED]
    return sock, monitor


def answers(context: "zmq.Context[Any]", folder: Any) -> bool:
    """Whether the context still carries messages."""
    listening, endpoint = server(context, folder)
    with listening, context.socket(zmq.DEALER, socket_class=zmq.Socket) as sock:
        sock.linger = 0
        connect(sock, endpoint)
        sock.send(b"are you there")
        return bool(listening.poll(WAIT_MS))


def test_a_peer_that_goes_away_is_told_at_once(context: "zmq.Context[Any]", tmp_path: Any) -> None:
    listening, endpoint = server(context, tmp_path)
    sock, monitor = watched(context, endpoint)
    listening.close()
    assert monitor.socket.poll(WAIT_MS)
    assert PeerEvent.LOST in monitor.events()
    monitor.close()
    monitor.close()
    sock.close()


def test_a_watched_connection_that_is_dropped_as_its_peer_goes_away_stops_no_other(
    context: "zmq.Context[Any]", tmp_path: Any
) -> None:
    for _ in range(200):
        with zmq.Context() as other:
            listening, endpoint = server(other, tmp_path)
            held = [watched(context, endpoint)]
            closing = threading.Thread(target=listening.close)
            closing.start()
            held.clear()
            gc.collect(0)
            closing.join()
    assert answers(context, tmp_path)
