"""Asks for a newer routing table, without pressing: the dispatch client calls `ask` as often as it lacks something."""

from collections.abc import Callable

_FIRST_BACK_OFF_S = 0.02
_LONGEST_BACK_OFF_S = 1.0


class Refresher:
    """Calls `refresh`, but not again before a back-off that doubles while no table comes."""

    def __init__(self, refresh: Callable[[], None], clock: Callable[[], float]) -> None:
        self._refresh = refresh
        self._clock = clock
        self._back_off_s = _FIRST_BACK_OFF_S
        self._next_at = 0.0

    def ask(self) -> None:
        """Ask now, unless that was done a moment ago."""
        now = self._clock()
        if now >= self._next_at:
            self._next_at = now + self._back_off_s
            self._back_off_s = min(2 * self._back_off_s, _LONGEST_BACK_OFF_S)
            self._refresh()

    def table_changed(self) -> None:
        """A newer table came: the next need is a new one."""
        self._back_off_s = _FIRST_BACK_OFF_S
        self._next_at = 0.0
