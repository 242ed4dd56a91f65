"""A cable that can be cut: stands in front of a UNIX socket, for whoever connects to it from then on."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

READ_BYTES = 16 << 10


class State(Enum):
    """What becomes of bytes."""

    WHOLE = "whole"
    SILENT = "silent"
    CUT = "cut"


def unharmed(data: bytes) -> bytes:
    """Bytes as they came."""
    return data


class Cable:
    """Carries bytes both ways between a socket's clients and the socket itself.

    Attributes:
        bytes_per_s: Each direction of each connection carries no more; None for as fast as it goes.
        harm: What is done to the bytes that come from the socket.
    """

    def __init__(self, path: str) -> None:
        self.bytes_per_s: float | None = None
        self.harm: Callable[[bytes], bytes] = unharmed
        self._path, self._far_path = Path(path), f"{path}~"
        self._state = State.WHOLE
        self._changed = threading.Condition()
        self._ends: set[socket.socket] = set()
        os.rename(path, self._far_path)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        threading.Thread(target=self._accept, name="cable", daemon=True).start()

    def be(self, state: State) -> None:
        """Go on, hold every byte back, or end every connection and refuse new ones."""
        with self._changed:
            self._state = state
            self._changed.notify_all()
        if state is State.CUT:
            self._end_all()

    def remove(self) -> None:
        """End every connection; the socket has its path again."""
        self.be(State.CUT)
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with contextlib.suppress(FileNotFoundError):  # whose socket it was may be gone with it
            os.rename(self._far_path, self._path)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was removed
            while True:
                self._join(self._listening.accept()[0])

    def _join(self, near: socket.socket) -> None:
        far = socket.socket(socket.AF_UNIX)
        try:
            if self._state is State.CUT:
                raise ConnectionRefusedError
            far.connect(self._far_path)
        except OSError:
            near.close()
            far.close()
            return
        self._ends |= {near, far}
        for source, target, harms in ((near, far, False), (far, near, True)):
            threading.Thread(target=self._carry, args=(source, target, harms), name="cable", daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, harms: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: self._state is not State.SILENT)
                if self.bytes_per_s is not None:
                    time.sleep(len(data) / self.bytes_per_s)
                target.sendall(self.harm(data) if harms else data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _end_all(self) -> None:
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
