"""Which bytes of a page are still to be asked for, and which are on their way. Pure bookkeeping of the fetcher."""

from collections.abc import Iterable

Range = tuple[int, int]
"""[start, end) in bytes."""


class Missing:
    """Ranges of a page, each missing, asked for, or (in neither) arrived."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._missing = sorted(ranges)
        self._asked: dict[int, Range] = {}
        self._number = 0

    @property
    def asked_bytes(self) -> int:
        """Bytes that are on their way."""
        return sum(end - start for start, end in self._asked.values())

    def next_length(self, longest: int) -> int:
        """Bytes that `ask` would take next, at most `longest`; 0 when everything was asked for."""
        if not self._missing:
            return 0
        start, end = self._missing[0]
        return min(longest, end - start)

    def ask(self, longest: int) -> tuple[int, Range]:
        """Take the first missing range, at most `longest` bytes of it: (the number it is asked under, the range)."""
        start, end = self._missing.pop(0)
        taken = (start, min(end, start + longest))
        if taken[1] < end:
            self._missing.insert(0, (taken[1], end))
        self._number += 1
        self._asked[self._number] = taken
        return self._number, taken

    def asked(self, number: int) -> Range | None:
        """The range asked for under a number, if it is on its way."""
        return self._asked.get(number)

    def arrived(self, number: int) -> None:
        """The range came intact."""
        del self._asked[number]

    def lost(self, number: int) -> None:
        """The range did not come, or not intact: it is missing again."""
        self._missing = sorted([*self._missing, self._asked.pop(number)])

    def all_lost(self) -> None:
        """Nothing that is on its way will come."""
        self._missing = sorted([*self._missing, *self._asked.values()])
        self._asked.clear()

    def outstanding(self) -> tuple[Range, ...]:
        """Everything that has not arrived, neighbours joined, in order."""
        joined: list[Range] = []
        for start, end in sorted([*self._missing, *self._asked.values()]):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return tuple(joined)

    def arrived_up_to(self, total: int) -> int:
        """Bytes at the page's beginning that arrived without a gap."""
        outstanding = self.outstanding()
        return outstanding[0][0] if outstanding else total
