"""Values made from files that somebody else replaces while we run: tokens, certificates, keys. No thread of its own.

A Secret that the kubelet mounts changes under its pods; whoever uses such a value asks for it each time.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reloaded(Generic[T]):
    """A value that is made anew once one of its files has changed; usable from several threads.

    Args:
        paths: The files; one that does not exist counts as empty.
        make: Reads them.

    Raises:
        OSError, ValueError: Whatever `make` raises at the first time. Later the last value stays, and the log says so.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._make = make
        self._lock = threading.Lock()
        self._seen = self._look()
        self._value = make()

    def get(self) -> T:
        """The value of the files as they are now."""
        now = self._look()
        if now == self._seen:
            return self._value
        with self._lock:
            if now != self._seen:
                self._seen = now
                try:
                    self._value = self._make()
                except (OSError, ValueError) as error:
                    log.warning("%s: what was read before stays: %s", ", ".join(map(str, self._paths)), error)
            return self._value

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_look, self._paths))


def _look(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced: also through the symbolic links of a mounted Secret."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
