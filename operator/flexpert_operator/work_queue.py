"""Who is to be reconciled, and when: a queue in which a key stands at most once. `controller`'s threads work it off.

What controller-runtime's queue promises, this one does: a key that is added again while it stands in the queue is
worked off once; one that is added while somebody works on it is worked on again afterwards, never by two at once;
failures are tried again after pauses that grow. Wakes of one key beyond a rate are put off, so that no dispute over an
object becomes a hot loop.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from flexpert_operator.backoff import backoff_s

Key = tuple[str, str]

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 60.0
LONGEST_HOLD_S = 60.0


@dataclass(slots=True)
class Entry:
    """What is known of a key.

    Attributes:
        due: When it is to be worked on; None: it does not stand in the queue.
        working: Somebody works on it.
        again: It was added meanwhile.
        failures: In a row.
        wakes: Left before they are put off, as of `counted`.
    """

    due: float | None = None
    working: bool = False
    again: bool = False
    failures: int = 0
    wakes: float = 0.0
    counted: float = 0.0


class WorkQueue:
    """Keys and their times. Safe to use from several threads.

    Args:
        rate: Wakes a second that a key may have in the long run.
        burst: Wakes that it may have at once.
        clock: Seconds that never go back.
    """

    def __init__(self, rate: float = 5.0, burst: float = 50.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._changed = threading.Condition()
        self._entries: dict[Key, Entry] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = itertools.count()
        self._held_until = 0.0
        self._closed = False

    def __len__(self) -> int:
        """Keys that are due now."""
        with self._changed:
            now = self._clock()
            return sum(entry.due is not None and entry.due <= now for entry in self._entries.values())

    def wake(self, key: Key) -> None:
        """Something about a key has changed."""
        with self._changed:
            entry = self._entry(key)
            if entry.working:
                entry.again = True
            else:
                self._schedule_wake(key, entry)

    def get(self) -> Key | None:
        """The next key that is due, once there is one; None when the queue is closed."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                while self._heap and not self._is_current(self._heap[0]):
                    heapq.heappop(self._heap)
                start = max(self._heap[0][0], self._held_until) if self._heap else None
                if start is not None and start <= now:
                    _, _, key = heapq.heappop(self._heap)
                    entry = self._entries[key]
                    entry.due, entry.working = None, True
                    return key
                self._changed.wait(None if start is None else start - now)
            return None

    def done(self, key: Key, after_s: float) -> None:
        """A key was worked on with success; once more in `after_s`, or as soon as something changes."""
        with self._changed:
            entry = self._finish(key)
            entry.failures = 0
            self._schedule(key, entry, self._clock() + after_s)
            self._settle(key, entry)

    def failed(self, key: Key) -> float:
        """Work on a key failed; it is tried again after the pause that is returned."""
        with self._changed:
            entry = self._finish(key)
            pause = backoff_s(entry.failures, FIRST_RETRY_S, LONGEST_RETRY_S)
            entry.failures += 1
            entry.again = False
            self._schedule(key, entry, self._clock() + pause)
            return pause

    def forget(self, key: Key) -> None:
        """A key that somebody works on is not to be worked on any more, unless it was added meanwhile."""
        with self._changed:
            entry = self._finish(key)
            self._settle(key, entry)
            if entry.due is None:
                del self._entries[key]

    def hold(self, seconds: float) -> None:
        """Give nothing out for a while, and no longer than `LONGEST_HOLD_S`: the API server asked for that."""
        with self._changed:
            self._held_until = max(self._held_until, self._clock() + min(seconds, LONGEST_HOLD_S))

    def close(self) -> None:
        """Give nothing out any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _entry(self, key: Key) -> Entry:
        if key not in self._entries:
            self._entries[key] = Entry(wakes=self._burst, counted=self._clock())
        return self._entries[key]

    def _finish(self, key: Key) -> Entry:
        entry = self._entries[key]
        entry.working = False
        return entry

    def _settle(self, key: Key, entry: Entry) -> None:
        """A wake that came while the key was worked on counts now."""
        if entry.again:
            entry.again = False
            self._schedule_wake(key, entry)

    def _schedule_wake(self, key: Key, entry: Entry) -> None:
        """As soon as the rate allows, unless that is soon enough already."""
        now = self._clock()
        entry.wakes = min(entry.wakes + (now - entry.counted) * self._rate, self._burst)
        entry.counted = now
        due = now + max(1.0 - entry.wakes, 0.0) / self._rate
        if entry.due is None or entry.due > due:
            entry.wakes -= 1
            self._schedule(key, entry, due)

    def _is_current(self, item: tuple[float, int, Key]) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.due == item[0]

    def _schedule(self, key: Key, entry: Entry, due: float) -> None:
        if entry.due is not None and entry.due <= due:
            return
        entry.due = due
        if len(self._heap) > 4 * len(self._entries) + 64:
            self._heap = [one for one in self._heap if self._is_current(one)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (due, next(self._count), key))
        self._changed.notify()
