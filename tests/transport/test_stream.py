"""Messages over stream sockets: whole, in order, whatever the kernel makes of them."""

import select
import socket

import pytest

from flexpert_workers.transport.listening import Listener, dial
from flexpert_workers.transport.stream import Connection, Disconnected


def take(connection):
    while (frames := connection.receive()) is None:
        assert select.select([connection], [], [], 10)[0], "nothing arrives"
    return [bytes(frame) for frame in frames]


@pytest.fixture
def pair():
    ours, theirs = (Connection(sock) for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("frames", [[], [b""], [b"a"], [b"head", b"", b"x" * 63, b"y" * 64, b"z" * 65], [b"q"] * 14])
def test_frames_arrive_as_they_were_sent(pair, frames):
    ours, theirs = pair
    ours.send(frames)
    ours.send([b"next"])
    assert take(theirs) == frames
    assert take(theirs) == [b"next"]
    assert theirs.receive() is None


def test_a_message_longer_than_the_kernel_takes_goes_in_pieces_and_keeps_its_place(pair):
    ours, theirs = pair
    long = bytes(range(256)) * (1 << 16)
    ours.send([b"first", long])
    ours.send([b"second"])
    assert ours.is_sending
    frames = None
    while frames is None:
        ours.flush()
        frames = theirs.receive()
    assert [bytes(frame) for frame in frames] == [b"first", long]
    ours.flush()
    assert take(theirs) == [b"second"]
    assert not ours.is_sending


def test_the_frames_of_a_message_are_not_overwritten_by_the_next(pair):
    ours, theirs = pair
    ours.send([b"one"])
    ours.send([b"two"])
    first, second = theirs.receive(), theirs.receive()
    assert (bytes(first[0]), bytes(second[0])) == (b"one", b"two")


def test_a_peer_that_goes_away_or_speaks_nonsense_is_noticed(pair):
    ours, theirs = pair
    ours.close()
    with pytest.raises(Disconnected, match="closed"):
        theirs.receive()
    stranger, server = socket.socketpair()
    with stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n" + b"x" * 100)
        connection = Connection(server)
        with pytest.raises(Disconnected, match="no message"):
            connection.receive()
        connection.close()


@pytest.mark.parametrize("unix", [True, False])
def test_a_listener_serves_several_peers(tmp_path, unix):
    listener = Listener("127.0.0.1", str(tmp_path) if unix else "")
    assert listener.endpoint.startswith("unix://" if unix else "tcp://")
    peers = [dial(listener.endpoint) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.send([str(number).encode()])
    answered = 0
    while answered < len(peers):
        for connection in listener.wait(10)[0]:
            frames = connection.receive()
            if frames is not None:
                listener.send(connection, [b"answer", frames[0]])
                answered += 1
    assert [take(peer) for peer in peers] == [[b"answer", str(number).encode()] for number in range(3)]
    peers[0].close()
    (gone,), _ = listener.wait(10)
    with pytest.raises(OSError):
        gone.receive()
    listener.drop(gone)
    listener.close()
    for peer in peers[1:]:
        with pytest.raises(OSError):
            take(peer)
        peer.close()


def test_a_listener_reads_nothing_from_a_peer_that_does_not_take_its_answer(tmp_path):
    listener, long = Listener("127.0.0.1", str(tmp_path)), b"x" * (32 << 20)
    peer = dial(listener.endpoint)
    peer.send([b"question"])
    connection = None
    while connection is None:
        connection = next(iter(listener.wait(10)[0]), None)
    assert connection.receive() is not None
    listener.send(connection, [long])
    peer.send([b"another"])
    assert listener.wait(0) == ([], set())
    answer = None
    while answer is None:
        listener.wait(0)
        answer = peer.receive()
    assert answer[0] == long
    assert listener.wait(10)[0] == [connection]
    assert take(connection) == [b"another"]
    peer.close()
    listener.close()


def test_what_is_watched_beside_the_connections_is_told(tmp_path):
    listener = Listener("127.0.0.1", str(tmp_path))
    ours, theirs = socket.socketpair()
    listener.watch(theirs.fileno())
    assert listener.wait(0) == ([], set())
    ours.close()
    assert listener.wait(10) == ([], {theirs.fileno()})
    theirs.close()
    listener.close()
    assert not list(tmp_path.iterdir())


def test_dialling_nobody_fails_at_once_or_shows_when_polled(tmp_path):
    with pytest.raises(OSError):
        dial(f"unix://{tmp_path}/none")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    connection = dial(f"tcp://127.0.0.1:{port}")
    assert select.select([connection], [], [], 10)[0]
    with pytest.raises(OSError):
        connection.receive()
    connection.close()
