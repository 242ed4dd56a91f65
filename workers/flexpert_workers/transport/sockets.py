"""What ZeroMQ sockets are asked beside sending and receiving. No tensors here: the pool controller uses it."""

from typing import Any

import zmq


def is_readable(sock: "zmq.Socket[Any]") -> bool:
    """Whether a message can be received without waiting."""
    return bool(int(sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
