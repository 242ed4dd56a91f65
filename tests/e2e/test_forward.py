"""A forwarded port goes on at another pod when the one behind it has gone; a script plays `kubectl port-forward`."""

import socket
import sys

from kind_cluster import Forward

SCRIPT = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1].partition(":")[0])))
while server.accept()[0].recv(3) != b"end":
    pass
"""


def test_a_forward_that_ended_is_begun_anew() -> None:
    forward = Forward([sys.executable, "-c", SCRIPT], 9000)
    try:
        host, _, port = forward.address().partition(":")
        first = forward._process
        assert forward.address() == f"{host}:{port}"
        assert forward._process is first, "it still runs"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"end")
        assert first is not None
        first.wait(60)
        assert forward.address() == f"{host}:{port}"
        assert forward._process is not first
    finally:
        forward.stop()
