"""Whose request goes next, so that clients get equal shares of the engines however many requests they have waiting.

The order is start-time fair queueing over tokens, with the weights of Sheng et al., "Fairness in serving large language
models" (OSDI 2024): each client has a counter of what it was given, and the waiting client with the smallest goes next.
A client that comes to wait starts where the others are, so that nobody saves up. Used by `fleet.py`.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

PROMPT_COST = 1.0
OUTPUT_COST = 2.0
"""Costs of a token: one that is generated takes a pass of its own."""
MAX_REMEMBERED = 4096
"""Clients whose counters are kept; those not charged for longest are forgotten first."""

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items by client."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._counters: OrderedDict[str, float] = OrderedDict()
        self._now = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self._waiting.values())

    def push(self, client: str, item: T) -> None:
        """Add an item behind the client's others."""
        if client not in self._waiting:
            self._waiting[client] = deque()
            self._set(client, max(self._counters.get(client, 0.0), self._now))
        self._waiting[client].append(item)
        self._length += 1

    def head(self) -> T:
        """The item that is next."""
        return self._waiting[self._next()][0]

    def pop(self) -> T:
        """Take out the item that is next."""
        client = self._next()
        self._now = self._counters[client]
        item = self._waiting[client].popleft()
        self._length -= 1
        if not self._waiting[client]:
            del self._waiting[client]
        return item

    def discard(self, client: str, item: T) -> bool:
        """Take out an item wherever it is; returns whether it was there."""
        items = self._waiting.get(client)
        if items is None or item not in items:
            return False
        items.remove(item)
        self._length -= 1
        if not items:
            del self._waiting[client]
        return True

    def charge(self, client: str, cost: float) -> None:
        """Note what a client was given; negative to give back."""
        self._set(client, self._counters.get(client, self._now) + cost)

    def _next(self) -> str:
        return min(self._waiting, key=self._counters.__getitem__)

    def _set(self, client: str, counter: float) -> None:
        self._counters[client] = counter
        self._counters.move_to_end(client)
        if len(self._counters) > MAX_REMEMBERED:
            oldest = next(known for known in self._counters if known not in self._waiting)
            del self._counters[oldest]
