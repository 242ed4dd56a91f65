"""The order of a fair queue, the wait that is predicted, and what is remembered of prompts."""

from hypothesis import given
from hypothesis import strategies as st

from flexpert_workers.ingress import fairness
from flexpert_workers.ingress.fairness import FairQueue
from flexpert_workers.ingress.pace import Pace
from flexpert_workers.ingress.prefixes import CHUNK_TOKENS, PrefixIndex, prompt_of

COSTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=1, max_size=60)


@given(COSTS)
def test_clients_that_always_wait_are_never_further_apart_than_one_item(items: list[tuple[str, int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for client, cost in items:
        queue.push(client, (client, cost))
    left = {client: sum(1 for other, _ in items if other == client) for client in "abc"}
    given_to = dict.fromkeys((client for client, _ in items), 0)
    largest = max(cost for _, cost in items)
    while len(queue):
        following = queue.head()
        client, cost = queue.pop()
        assert following == (client, cost)
        queue.charge(client, cost)
        given_to[client] += cost
        left[client] -= 1
        waiting = [given_to[other] for other in given_to if left[other]]
        assert not waiting or max(waiting) - min(waiting) <= largest


def test_who_was_away_saves_nothing_up() -> None:
    queue: FairQueue[int] = FairQueue()
    for _ in range(5):
        queue.push("busy", 0)
        queue.pop()
        queue.charge("busy", 100)
    queue.push("busy", 1)
    queue.push("new", 2)
    assert queue.pop() == 2
    queue.charge("new", 150)
    queue.push("new", 3)
    assert queue.pop() == 1


def test_an_item_can_be_taken_out() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("a", 1)
    queue.push("a", 2)
    assert queue.discard("a", 1)
    assert not queue.discard("a", 1)
    assert not queue.discard("b", 2)
    assert queue.pop() == 2
    assert len(queue) == 0


def test_counters_of_many_clients_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(fairness.MAX_REMEMBERED * 2):
        queue.push(str(number), number)
        queue.pop()
        queue.charge(str(number), 5)
    assert len(queue._counters) <= fairness.MAX_REMEMBERED


def test_the_wait_is_what_grants_took_while_others_waited() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.wait_s(0) == 0.0
    assert pace.wait_s(3) is None
    for _ in range(6):
        now[0] += 0.5
        pace.granted(num_left=2)
    now[0] += 0.5
    pace.granted(num_left=0)
    now[0] += 100.0
    pace.granted(num_left=5)
    assert pace.wait_s(4) == 2.0, "the time without a queue does not count"
    now[0] += 70.0
    stuck = pace.wait_s(1)
    assert stuck is not None
    assert stuck > 5.0


def test_prefixes_match_by_whole_chunks_and_are_bounded_by_the_cache() -> None:
    index = PrefixIndex()
    known = list(range(5 * CHUNK_TOKENS))
    index.note(prompt_of(known), None)
    assert index.match_tokens(prompt_of(known)) == 5 * CHUNK_TOKENS
    assert index.match_tokens(prompt_of([*known[: 2 * CHUNK_TOKENS + 3], 999, *known])) == 2 * CHUNK_TOKENS
    assert index.match_tokens(prompt_of([999, *known])) == 0
    index.note(prompt_of(list(range(1000, 1000 + 3 * CHUNK_TOKENS))), 3 * CHUNK_TOKENS)
    assert index.match_tokens(prompt_of(known)) == 0
