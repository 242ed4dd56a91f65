"""Tokens per expert, added up over workers that are alive or gone. Kept by the fleet, read by `GetPool`."""

from collections.abc import Sequence


class LoadLedger:
    """What each worker has last told; the counts of a worker that died stay in the sum.

    Attributes:
        since: Seconds since the Unix epoch at which counting began.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self._told: dict[str, tuple[int, ...]] = {}
        self._before: dict[str, tuple[int, ...]] = {}

    def note(self, worker: str, tokens: Sequence[int], adopted: bool) -> None:
        """Take a worker's counts since it started; of one that an earlier controller started, only what is added."""
        if adopted and worker not in self._before:
            self._before[worker] = tuple(tokens)
        self._told[worker] = tuple(tokens)

    def total(self, num_experts: int) -> tuple[int, ...]:
        """Tokens per expert since `since`, packed layer * experts + index, `num_experts` of them."""
        sums = [0] * num_experts
        for worker, told in self._told.items():
            before = self._before.get(worker, (0,) * len(told))
            for position, (now, then) in enumerate(zip(told, before, strict=True)):
                sums[position] += now - then
        return tuple(sums)
