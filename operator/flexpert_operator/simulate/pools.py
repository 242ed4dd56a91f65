"""The two pools of a simulation: members that serve, that are coming and that are going, and the devices they hold."""

from dataclasses import dataclass, field

from flexpert_operator.autoscale import PoolCount

LEAVING_S = 5.0
"""For which a member that goes still holds its devices."""


@dataclass
class Pool:
    """Members of one kind. Times are seconds since the beginning.

    Attributes:
        ready: Those that serve.
    """

    ready: int
    _coming: list[float] = field(default_factory=list)
    _going: list[float] = field(default_factory=list)

    def set_size(self, size: int, at: float, start_s: float) -> bool:
        """Start or end members; those that have not come yet go first. Returns whether anything changed."""
        missing = size - self.ready - len(self._coming)
        self._coming += [at + start_s] * max(missing, 0)
        surplus = max(-missing, 0)
        not_begun = min(surplus, len(self._coming))
        if not_begun:
            del self._coming[-not_begun:]
        self._going += [at + LEAVING_S] * (surplus - not_begun)
        self.ready -= surplus - not_begun
        return missing != 0

    def advance(self, at: float) -> None:
        """Let those arrive whose time has come, and those leave."""
        if self._coming:
            there = sum(one <= at for one in self._coming)
            self.ready += there
            self._coming = [one for one in self._coming if one > at]
        if self._going:
            self._going = [one for one in self._going if one > at]

    @property
    def is_changing(self) -> bool:
        """Whether anybody comes or goes."""
        return bool(self._coming or self._going)

    def count(self) -> PoolCount:
        """As an operator sees it."""
        return PoolCount(self.ready, self.ready + len(self._coming) + len(self._going))
