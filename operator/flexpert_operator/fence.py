"""What keeps an operator that does not lead any more from writing. `kube` and `pool_client` ask before every write.

`leadership.Leadership` is the fence of an operator that is elected.
"""

from typing import Protocol


class Fence(Protocol):
    """Tells whether this process may write."""

    def check(self) -> int:
        """The number of this process's leadership, 0 where none is elected; raises `KubeUnavailable` if it may not."""
        ...

    def outdone(self, newest: int) -> None:
        """Somebody has heard from a leader with the number `newest`, which is higher than this one's."""
        ...


class NoFence:
    """The fence of a process that needs none."""

    def check(self) -> int:
        """It always may."""
        return 0

    def outdone(self, newest: int) -> None:
        """Nobody refuses those who are not elected."""
