"""What `bench_elastic` sees of its processes and streams: bytes over all processes, and token rates from spans."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

OWNER_MODULE = b"flexpert_workers.memory.owner"
PAGE_NAME = "/memfd:flexpert-page"
BLOCK_BYTES = 512


class Window(NamedTuple):
    """A stretch of time, in seconds of the monotonic clock."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.begin


class Span(NamedTuple):
    """The tokens of a piece, and the time that they took: from the stream's piece before to this one."""

    stream: int
    begin: float
    end: float
    tokens: int

    @property
    def seconds(self) -> float:
        """How long the stream waited for the piece."""
        return self.end - self.begin

    def inside(self, window: Window) -> float:
        """Seconds of it that lie in a window."""
        return max(0.0, min(self.end, window.end) - max(self.begin, window.begin))


def tokens_per_s(spans: Sequence[Span], window: Window) -> float:
    """Rate in a window; a token that was being computed at its edge counts by the share of its time inside."""
    tokens = sum(span.tokens * span.inside(window) / span.seconds for span in spans if span.seconds > 0)
    return tokens / window.seconds


def token_seconds(spans: Sequence[Span], window: Window) -> list[float]:
    """The time of each token that was being computed in a window."""
    return [span.seconds / span.tokens for span in spans if span.inside(window) > 0 for _ in range(span.tokens)]


def downtime_s(spans: Sequence[Span], window: Window, stall_s: float) -> float:
    """Of the stream that stood still for longest: its waits of over `stall_s` for a piece that reach into a window."""
    stalls: dict[int, float] = {}
    for span in spans:
        if span.inside(window) > 0 and span.seconds > stall_s:
            stalls[span.stream] = stalls.get(span.stream, 0.0) + span.seconds
    return max(stalls.values(), default=0.0)


def children() -> Iterator[int]:
    """Ids of the processes that this one started and that live."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            yield from map(int, (thread / "children").read_text().split())


def page_bytes(owner: int) -> int:
    """Bytes of the pages that an owner holds, lent or idle, mapped or not."""
    files: dict[int, int] = {}
    for entry in os.scandir(f"/proc/{owner}/fd"):
        if os.readlink(entry.path).startswith(PAGE_NAME):
            status = os.stat(entry.path)
            files[status.st_ino] = status.st_blocks * BLOCK_BYTES
    return sum(files.values())


def anonymous_bytes(process: int) -> int:
    """Bytes of a process's own memory: without its mapped files and pages."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def proportional_bytes(processes: Sequence[int]) -> int:
    """PSS of processes, mapped files and pages included."""
    total = 0
    for process in processes:
        with suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


class MemoryWatch:
    """Samples the bytes of a pool in a thread: the own memory of each of its processes, and every owner's pages once.

    Not PSS: a page that its owner keeps without anybody mapping it is in no process's PSS, and reading the PSS of
    processes with gigabytes mapped holds them up.

    Args:
        outside: Processes started here that are no part of the pool.
    """

    def __init__(self, outside: frozenset[int], interval_s: float) -> None:
        self._outside = outside
        self._interval_s = interval_s
        self._peak = 0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def processes(self) -> list[int]:
        """Ids of the pool's processes."""
        return sorted(set(children()) - self._outside)

    def now(self) -> int:
        """Bytes at this moment."""
        total = 0
        for process in self.processes():
            with suppress(OSError):  # it has just ended
                command = Path(f"/proc/{process}/cmdline").read_bytes()
                total += anonymous_bytes(process)
                total += page_bytes(process) if OWNER_MODULE in command else 0
        with self._lock:
            self._peak = max(self._peak, total)
        return total

    def take_peak(self) -> int:
        """The most there was since the last call, and now."""
        self.now()
        with self._lock:
            peak, self._peak = self._peak, 0
        return peak

    def stop(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(self._interval_s):
            self.now()
