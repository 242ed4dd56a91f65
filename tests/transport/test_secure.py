"""TCP within a pool that has credentials: members understand each other, and nobody else gets anything."""

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq
from certificates import DAY, Authority, pool_credentials, pool_environment
from zmq.utils.monitor import recv_monitor_message

from flexpert_proto import names
from flexpert_proto.credentials import CredentialsError
from flexpert_workers.transport import bind, connect, listening
from flexpert_workers.transport.listening import Listener, dial
from flexpert_workers.transport.secure import SecureConnection
from flexpert_workers.transport.stream import Connection

WAIT_S = 60
Enter = Callable[[Path], None]


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Enter:
    """Makes this process one that was given these credentials."""

    def with_credentials(folder: Path) -> None:
        for name, value in pool_environment(folder).items():
            monkeypatch.setenv(name, value)

    return with_credentials


@pytest.fixture
def member(tmp_path: Path, authority: Authority, enter: Enter) -> Path:
    folder = pool_credentials(tmp_path / "member", authority)
    enter(folder)
    return folder


@pytest.fixture
def listener(member: Path) -> Iterator[Listener]:
    made = Listener("127.0.0.1", "")
    yield made
    made.close()


def serve(listener: Listener, peer: Connection, expected: int) -> list[list[bytes]]:
    """Echo what comes from a peer, until so many echoes are back there."""
    echoes: list[list[bytes]] = []
    poller = select.poll()
    while len(echoes) < expected:
        peer.flush()
        readable, _ = listener.wait(0.01)
        for connection in readable:
            frames = connection.receive()
            if frames is not None:
                listener.send(connection, frames)
        poller.register(peer, select.POLLIN)
        if peer.has_more or poller.poll(10):
            while (back := peer.receive()) is not None:
                echoes.append([bytes(frame) for frame in back])
    return echoes


def test_messages_of_any_length_go_both_ways(listener: Listener) -> None:
    peer = dial(listener.endpoint)
    assert isinstance(peer, SecureConnection)
    messages = [[b"a"], [b"", b"x" * 63, b""], [b"head", bytes(range(256)) * (1 << 16)], [b"q"] * 14, [b"last"]]
    for message in messages:
        peer.send(message)
    assert serve(listener, peer, len(messages)) == messages
    assert not peer.is_sending
    peer.close()


def refused(listener: Listener, peer: Connection) -> bool:
    """Whether the listener lets go of a peer without having heard a message from it."""
    for _ in range(1000):
        readable, _ = listener.wait(0.05)
        for connection in readable:
            try:
                assert connection.receive() is None
            except OSError:
                listener.drop(connection)
        try:
            peer.flush()
            peer.receive()
        except OSError:
            return True
    return False


@pytest.mark.parametrize("who", ["foreign", "expired", "unknown", "plain"])
def test_others_are_not_heard(
    who: str, listener: Listener, authority: Authority, enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = pool_credentials(tmp_path / who, Authority("foreign") if who == "foreign" else authority)
    if who == "foreign":
        (other / "ca.crt").write_bytes(authority.certificate)
    if who == "expired":
        authority.issue(other, names.pool_identity("tiny-moe", "default"), lasts=-DAY)
    enter(other)
    if who == "plain":
        monkeypatch.delenv(names.ENV_POOL_CREDENTIALS)
    if who == "unknown":  # it encrypts, and shows nothing
        context = ssl.create_default_context(cadata=authority.certificate.decode())
        sock = socket.create_connection(("127.0.0.1", int(listener.endpoint.rpartition(":")[2])))
        peer: Connection = SecureConnection(sock, context, names.pool_identity("tiny-moe", "default"))
    else:
        peer = dial(listener.endpoint)
    peer.send([b"let me in" * 10])
    assert refused(listener, peer)
    peer.close()


def test_a_listener_of_another_pool_is_not_believed(
    authority: Authority, enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(pool_credentials(tmp_path / "other", authority, "other"))
    listener = Listener("127.0.0.1", "")
    enter(pool_credentials(tmp_path / "member", authority))
    peer = dial(listener.endpoint)
    peer.send([b"secret" * 100])
    assert refused(listener, peer)
    peer.close()
    listener.close()


def test_who_says_nothing_is_dropped(tmp_path: Path) -> None:
    now = [0.0]
    listener = Listener("127.0.0.1", "", lambda: now[0])
    silent, halting, speaking = (dial(listener.endpoint) for _ in range(3))
    halting._sock.send(b"fxm1")
    speaking.send([b"hello"])
    heard = 0
    while not heard:
        for connection in listener.wait(0.05)[0]:
            heard += connection.receive() is not None
    now[0] += listening.FIRST_MESSAGE_S
    listener.wait(0)
    for peer in (silent, halting):
        assert select.select([peer], [], [], WAIT_S)[0]
        with pytest.raises(OSError, match=r"closed|reset"):
            peer.receive()
    assert speaking.receive() is None
    for peer in (silent, halting, speaking):
        peer.close()
    listener.close()


@pytest.fixture
def sockets() -> Iterator[Callable[[int], "zmq.Socket[Any]"]]:
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def make(kind: int) -> "zmq.Socket[Any]":
            sock = stack.enter_context(context.socket(kind))
            sock.linger = 0
            sock.rcvtimeo = WAIT_S * 1000
            return sock

        yield make


def test_curve_lets_members_talk_and_nobody_else(
    member: Path,
    authority: Authority,
    enter: Enter,
    tmp_path: Path,
    sockets: Callable[[int], "zmq.Socket[Any]"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = sockets(zmq.ROUTER)
    endpoint = bind(server, "127.0.0.1", "")

    enter(pool_credentials(tmp_path / "other", authority))
    stranger = sockets(zmq.DEALER)
    plain = sockets(zmq.DEALER)
    for sock in (stranger, plain):
        monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        monitor.rcvtimeo = WAIT_S * 1000
        connect(sock, endpoint)
        sock.send(b"let me in")
        recv_monitor_message(monitor)  # the server has hung up
        sock.disable_monitor()
        monitor.close()
        monkeypatch.delenv(names.ENV_POOL_CREDENTIALS, raising=False)

    enter(member)
    ours = sockets(zmq.DEALER)
    connect(ours, endpoint)
    ours.send(b"hello")
    identity, message = server.recv_multipart()
    assert message == b"hello"
    assert not server.poll(0)
    server.send_multipart([identity, b"and to you"])
    assert ours.recv() == b"and to you"


def test_a_member_says_nothing_to_a_server_without_the_key(
    member: Path, sockets: Callable[[int], "zmq.Socket[Any]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor, ours = sockets(zmq.ROUTER), sockets(zmq.DEALER)
    port = impostor.bind_to_random_port("tcp://127.0.0.1")
    monitor = ours.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    monitor.rcvtimeo = WAIT_S * 1000
    connect(ours, f"tcp://127.0.0.1:{port}")
    ours.send(b"secret")
    recv_monitor_message(monitor)
    assert not impostor.poll(0)
    ours.disable_monitor()
    monitor.close()


def test_a_pool_is_given_another_key_while_its_members_talk(
    member: Path, sockets: Callable[[int], "zmq.Socket[Any]"]
) -> None:
    file = member / names.POOL_KEY_KEY
    old, new = file.read_text(), "n" * 40 + "\n"

    def said(server: "zmq.Socket[Any]", endpoint: str) -> None:
        ours = sockets(zmq.DEALER)
        connect(ours, endpoint)
        ours.send(b"hello")
        assert server.recv_multipart()[1] == b"hello"

    earlier = sockets(zmq.ROUTER)
    before = bind(earlier, "127.0.0.1", "")
    file.write_text(old + new)  # all know it, nobody uses it yet
    said(earlier, before)
    assert bind(sockets(zmq.ROUTER), "127.0.0.1", "").partition("?")[2] == before.partition("?")[2]
    file.write_text(new + old)  # whoever starts now uses it
    later = sockets(zmq.ROUTER)
    after = bind(later, "127.0.0.1", "")
    assert after.partition("?")[2] != before.partition("?")[2]
    assert old.strip() not in before
    said(earlier, before)
    said(later, after)
    file.write_text(new)  # the other one is of no use any more
    said(later, after)
    ours = sockets(zmq.DEALER)
    monitor = ours.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    monitor.rcvtimeo = WAIT_S * 1000
    connect(ours, before)
    ours.send(b"let me in")
    recv_monitor_message(monitor)
    assert not earlier.poll(0)
    ours.disable_monitor()
    monitor.close()


def test_a_pool_without_its_key_does_not_start(
    member: Path, sockets: Callable[[int], "zmq.Socket[Any]"], tmp_path: Path
) -> None:
    for wrong in ("short", "", f"{'a' * 40}\nshort\n"):
        (member / names.POOL_KEY_KEY).write_text(wrong)
        with pytest.raises(CredentialsError, match="shorter than 32"):
            bind(sockets(zmq.ROUTER), "127.0.0.1", "")
    (member / names.POOL_KEY_KEY).unlink()
    with pytest.raises(CredentialsError, match="openssl rand"):
        bind(sockets(zmq.ROUTER), "127.0.0.1", "")
    assert bind(sockets(zmq.ROUTER), "127.0.0.1", str(tmp_path)).startswith("ipc://")  # nothing to guard


def test_a_frame_that_is_too_long_ends_its_connection(
    sockets: Callable[[int], "zmq.Socket[Any]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexpert_workers.transport.endpoints.MAX_MESSAGE_BYTES", 1000)
    server, sender = sockets(zmq.ROUTER), sockets(zmq.DEALER)
    endpoint = bind(server, "127.0.0.1", "")
    monitor = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    monitor.rcvtimeo = WAIT_S * 1000
    connect(sender, endpoint)
    sender.send(b"x" * 1001)
    recv_monitor_message(monitor)
    sender.send(b"x" * 1000)
    assert server.recv_multipart()[1] == b"x" * 1000
    sender.disable_monitor()
    monitor.close()
