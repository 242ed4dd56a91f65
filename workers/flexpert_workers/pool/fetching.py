"""Has the model's files fetched on every node of the pool, a few nodes at a time, and tells how far that is.

`controller` owns one. Workers are started only where the files are; engines wait for them there. A source in a folder
needs none of it.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from flexpert_workers.pool.launchers import LauncherUnavailable, NodeFetcher
from flexpert_workers.pool.state import FetchState, ModelFiles, Slot
from flexpert_workers.sources import parse_remote

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Nodes that fetch at a time: what a hub or a store is spared."""

_LOOK_S = 1.0
_FIRST_DELAY_S = 5.0
_LONGEST_DELAY_S = 300.0
_ORDER = ("Failed", "Resolving", "Waiting", "Downloading", "Verifying", "Ready")
_NOT_BEGUN = "Waiting"


@dataclass(frozen=True)
class Failures:
    """How often in a row a node's fetch has failed, and when it did last (controller's clock)."""

    count: int
    at: float

    @property
    def retry_at(self) -> float:
        """When it is begun again: the delay doubles with each failure."""
        return self.at + min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** (self.count - 1))


def to_begin(
    nodes: Collection[str],
    states: Mapping[str, FetchState],
    failures: Mapping[str, Failures],
    now: float,
    at_once: int = AT_ONCE,
) -> tuple[str, ...]:
    """Nodes whose fetch is to begin now, so that no more than `at_once` go on; those that failed come last. Pure."""
    running = sum(not state.finished for node, state in states.items() if node in nodes)
    due = [node for node in nodes if node not in states and (node not in failures or failures[node].retry_at <= now)]
    due.sort(key=lambda node: (node in failures, node))
    return tuple(due[: max(0, at_once - running)])


def summary(nodes: Collection[str], states: Mapping[str, FetchState], num_bytes: int) -> ModelFiles:
    """How far all nodes are together. `num_bytes` is what each of them fetches."""
    known = [states.get(node, FetchState(_NOT_BEGUN)) for node in sorted(nodes)]
    if not known:
        return ModelFiles()
    worst = min(known, key=lambda state: _ORDER.index(state.phase))
    done = sum(num_bytes if state.phase == "Ready" else min(state.bytes_done, num_bytes) for state in known)
    return ModelFiles(
        phase=worst.phase,
        bytes_done=done,
        bytes_total=num_bytes * len(known),
        nodes_ready=sum(state.phase == "Ready" for state in known),
        nodes=len(known),
        error=worst.error,
        message=worst.message,
    )


class ModelFetches:
    """Keeps the files of one remote model on every node.

    Args:
        fetcher: Runs fetches; None where only folders are served.
        changed: Is called when anything is another way than before.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, fetcher: NodeFetcher | None, changed: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetcher = fetcher
        self._changed = changed
        self._clock = clock
        self._source = ""
        self._num_bytes = 0
        self._nodes: tuple[str, ...] = ()
        self._states: dict[str, FetchState] = {}
        self._failures: dict[str, Failures] = {}
        self._said: dict[str, FetchState] = {}
        self._looked_at = -_LOOK_S

    def holds(self, source: str, slot: Slot) -> bool:
        """Whether the files of what the pool's processes open are where a slot is."""
        if self._fetcher is None or parse_remote(source) is None:
            return True
        state = self._states.get(node_of(slot))
        return source == self._source and state is not None and state.phase == "Ready"

    def files(self) -> ModelFiles:
        """How far they are; a node that is to try again counts as failed, with what it said."""
        return summary(self._nodes, {**self._said, **self._states}, self._num_bytes) if self._source else ModelFiles()

    async def round(self, source: str, num_bytes: int) -> None:
        """Look at the fetches, now and then only, and begin those that may begin.

        Args:
            source: What the pool's processes open.
            num_bytes: That each node fetches.
        """
        if self._fetcher is None or parse_remote(source) is None or self._clock() - self._looked_at < _LOOK_S:
            return
        self._looked_at = self._clock()
        self._follow(source, num_bytes)
        before = (self._nodes, dict(self._states))
        try:
            await self._look(self._fetcher)
        except LauncherUnavailable as away:
            log.info("fetches cannot be looked at: %s", away)
        if (self._nodes, self._states) != before:
            self._changed()

    def _follow(self, source: str, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        if source != self._source:
            self._source = source
            self._states, self._failures, self._said = {}, {}, {}

    async def _look(self, fetcher: NodeFetcher) -> None:
        self._nodes = tuple(sorted(await fetcher.nodes()))
        self._states = {node: state for node, state in self._states.items() if node in self._nodes}
        for node, state in list(self._states.items()):
            if state.phase != "Ready":
                await self._ask(fetcher, node)
        for node in to_begin(self._nodes, self._states, self._failures, self._clock()):
            log.info("fetching %s on node %s", self._source, node)
            await fetcher.begin(node, self._source)
            self._states[node] = FetchState("Resolving")

    async def _ask(self, fetcher: NodeFetcher, node: str) -> None:
        state = await fetcher.state(node, self._source)
        state = state or FetchState("Failed", error="CheckpointError", message="the fetch ended without a word")
        self._states[node] = state
        if not state.finished:
            return
        await fetcher.end(node, self._source)
        if state.phase == "Ready":
            self._failures.pop(node, None)
            self._said.pop(node, None)
            return
        log.warning("the fetch on node %s failed: %s", node, state.message)
        count = self._failures[node].count + 1 if node in self._failures else 1
        self._failures[node] = Failures(count, self._clock())
        self._said[node] = replace(state, phase="Failed")
        del self._states[node]


def node_of(slot: Slot) -> str:
    """The node of a slot, as fetches call it."""
    return slot.ray_node_id or slot.pod
