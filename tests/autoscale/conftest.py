"""A pool that follows decisions, with traffic as a test says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from flexpert_operator.autoscale import Counters, Decision, Observation, Policy, PoolCount, Sizes, State, decide
from flexpert_operator.autoscale.fit import Profile

EVERY_S = 15.0


@dataclass(frozen=True)
class Looked:
    """One look: what was seen, decided and remembered."""

    observation: Observation
    decision: Decision
    state: State


class Follower:
    """A pool whose sizes are as decided, at once; requests have 200 prompt tokens and answers 100."""

    def __init__(self, policy: Policy, sizes: Sizes = Sizes(1, 1), start: float = 1_000_000.0) -> None:  # noqa: B008
        self.policy, self.sizes, self.state, self.at = policy, sizes, State.initial(Profile()), start
        self.counters = Counters()

    def seen(self, rate: float, **changed: object) -> Observation:
        self.at += EVERY_S
        more = rate * EVERY_S
        old = self.counters
        self.counters = Counters(
            old.requests + more, old.prompt_tokens + 200 * more, old.finished + more, old.finished_tokens + 100 * more
        )
        observation = Observation(
            at=self.at,
            measured_at=self.at,
            engines=PoolCount(self.sizes.engines, self.sizes.engines),
            experts=PoolCount(self.sizes.experts, self.sizes.experts),
            counters=self.counters,
            running=rate * 2,
        )
        return replace(observation, **changed)

    def look(self, rate: float, **changed: object) -> Looked:
        observation = self.seen(rate, **changed)
        decision, self.state = decide(observation, self.state, self.policy)
        if decision.acts:
            self.sizes = decision.sizes
        return Looked(observation, decision, self.state)

    def looks(self, rates: "list[float]") -> Iterator[Looked]:
        for rate in rates:
            yield self.look(rate)


@pytest.fixture(scope="session")
def follow() -> Callable[..., Follower]:
    return Follower
