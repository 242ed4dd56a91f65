"""Recording which experts the router chooses: every token once, in order, and only of passes that were kept."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from flexpert_proto.pool_pb2 import RecordOrder, TraceChunk
from flexpert_workers.engine import recording
from flexpert_workers.engine.recorder import RoutedTokens, RoutingRecorder
from flexpert_workers.engine.recording import Recordings
from flexpert_workers.errors import PassAbandoned

WAIT_S = 60
LAYERS = 3


class Kept:
    """Takes what a recorder gives on, and puts sequences together."""

    def __init__(self) -> None:
        self.routed: list[RoutedTokens] = []
        self.takes = True

    def __call__(self, routed: RoutedTokens) -> bool:
        if self.takes:
            self.routed.append(routed)
        return self.takes

    def sequences(self) -> dict[int, np.ndarray]:
        parts: dict[int, list[np.ndarray]] = {}
        for routed in self.routed:
            ends = np.cumsum(routed.lengths)
            for number, length, end in zip(routed.sequences, routed.lengths, ends, strict=True):
                parts.setdefault(number, []).append(routed.experts[end - length : end])
        return {number: np.concatenate(found) for number, found in parts.items()}


def routed_by_the_model(family: Any, tokens: list[int]) -> np.ndarray:
    """[tokens, layers, k] what the library's own routers choose for a text, highest weight first."""
    with torch.no_grad():
        output = family.reference(torch.tensor([tokens]), output_router_logits=True)
    return torch.stack([logits.topk(2).indices for logits in output.router_logits], dim=1).numpy()


@pytest.fixture
def recorded(bench: Any) -> Callable[..., tuple[Any, Kept]]:
    def make(tokens: int = 10_000, **config: Any) -> tuple[Any, Kept]:
        one = bench(kv_cache_bytes=8 << 20, **config)
        kept = Kept()
        one.engine.record(RoutingRecorder(LAYERS, tokens, kept))
        return one, kept

    return make


def test_every_token_is_recorded_as_the_model_routes_it(recorded: Any, families: Any, make_prompt: Any) -> None:
    one, kept = recorded(max_batch_tokens=24)
    prompts = {0: make_prompt(30), 1: make_prompt(9), 2: make_prompt(17)}
    for number, prompt in prompts.items():
        one.add(number, prompt, max_tokens=8)
    answers = one.run()
    sequences = kept.sequences()
    assert len(sequences) == 3
    wanted = {
        len(prompt): routed_by_the_model(families["mixtral"], prompt + answers[number].tokens)[:-1]
        for number, prompt in prompts.items()
    }
    for found in sequences.values():
        assert np.array_equal(found, wanted[len(found) - 7])


def test_nothing_is_between_the_model_and_the_dispatcher_unless_one_records(bench: Any) -> None:
    one = bench(kv_cache_bytes=8 << 20)
    experts = one.engine._dense.model.get_submodule(one.family.checkpoint.moe_layer_modules[0])
    assert experts.flexpert_hooks.dispatch == one.dispatcher.dispatch
    one.engine.record(RoutingRecorder(LAYERS, 5, Kept()))
    assert experts.flexpert_hooks.dispatch != one.dispatcher.dispatch
    one.engine.record(None)
    assert experts.flexpert_hooks.dispatch == one.dispatcher.dispatch


def test_an_abandoned_pass_counts_only_when_it_is_computed_again(recorded: Any, make_prompt: Any) -> None:
    one, kept = recorded()
    one.add(0, make_prompt(12), max_tokens=4)
    one.dispatcher.failures += [PassAbandoned("away")] * 2
    for _ in range(2):
        with pytest.raises(PassAbandoned):
            one.step()
    assert kept.routed == []
    one.run()
    (found,) = kept.sequences().values()
    assert len(found) == 12 + 3


def test_a_pass_that_broke_counts_not_at_all(recorded: Any, make_prompt: Any) -> None:
    one, kept = recorded()
    for number in range(2):
        one.add(number, make_prompt(5 + number), max_tokens=3)
    one.dispatcher.failures.append(RuntimeError("broken"))
    one.run()
    assert sorted(len(found) for found in kept.sequences().values()) == [7, 8]


def test_what_a_preempted_request_computes_again_is_not_counted_twice(recorded: Any, make_prompt: Any) -> None:
    one, kept = recorded(block_tokens=8)
    one.blocks.allocate(one.blocks.num_free - 13)
    for number in range(3):
        one.add(number, make_prompt(20, seed=number), max_tokens=40)
    one.run()
    assert one.scheduler.num_preemptions > 0
    assert sum(len(found) for found in kept.sequences().values()) == 3 * (20 + 39)


def test_it_ends_by_itself_at_the_token(recorded: Any, make_prompt: Any) -> None:
    one, kept = recorded(tokens=25)
    one.add(0, make_prompt(20), max_tokens=10)
    one.add(1, make_prompt(20, seed=1), max_tokens=10)
    one.run()
    assert sum(len(found) for found in kept.sequences().values()) == 25
    assert one.engine.recorder is None


def test_a_request_whose_tokens_nobody_took_goes_on_as_another_sequence(recorded: Any, make_prompt: Any) -> None:
    one, kept = recorded()
    one.add(0, make_prompt(10), max_tokens=6)
    one.step()
    kept.takes = False
    one.step()
    kept.takes = True
    one.run()
    assert [len(found) for found in kept.sequences().values()] == [10, 4]


def test_cached_tokens_are_not_in_the_trace(recorded: Any, make_prompt: Any) -> None:
    one, kept = recorded(block_tokens=8)
    for number in range(2):
        one.add(number, make_prompt(20), max_tokens=2)
        one.run()
    assert [len(found) for found in kept.sequences().values()] == [21, 21 - 16]


class Call:
    """Stands for the call to the pool controller."""

    def __init__(self) -> None:
        self.chunks: list[TraceChunk] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.done = threading.Event()
        self.error: grpc.RpcError | None = None

    def __call__(self, chunks: Iterator[TraceChunk], timeout_s: float) -> None:
        try:
            self.chunks.append(next(chunks))
            self.begun.set()
            if self.error is not None:
                raise self.error
            assert self.go_on.wait(WAIT_S)
            self.chunks += chunks
        finally:
            self.done.set()


class Loop:
    """Stands for the engine's loop: which recorder is on."""

    def __init__(self) -> None:
        self.recorder: RoutingRecorder | None = None
        self.detached = threading.Event()

    def attach(self, recorder: RoutingRecorder) -> None:
        self.detached.clear()
        self.recorder = recorder

    def detach(self, recorder: RoutingRecorder) -> None:
        if self.recorder is recorder:
            self.recorder = None
            self.detached.set()


def routed(tokens: int) -> RoutedTokens:
    return RoutedTokens((0,), (tokens,), np.arange(tokens * LAYERS * 2, dtype=np.uint16).reshape(tokens, LAYERS, 2))


@pytest.fixture
def ordered() -> tuple[Recordings, Loop, Call]:
    loop, call = Loop(), Call()
    return Recordings("nowhere", "e-1", LAYERS, loop.attach, loop.detach, call), loop, call


def test_an_order_is_carried_out_to_its_last_token(ordered: tuple[Recordings, Loop, Call]) -> None:
    recordings, loop, call = ordered
    recordings.obey(RecordOrder(id="r", tokens=5, seconds=60))
    assert loop.recorder is not None
    recordings._current._offer(routed(3))
    recordings._current._offer(routed(2))
    call.go_on.set()
    assert call.done.wait(WAIT_S)
    assert loop.detached.wait(WAIT_S)
    first, *rest = call.chunks
    assert (first.recording, first.engine, list(first.lengths)) == ("r", "e-1", [])
    assert [list(chunk.lengths) for chunk in rest] == [[3], [2]]
    assert np.frombuffer(rest[0].experts, "<u2").tolist() == list(range(3 * LAYERS * 2))


def test_an_order_withdrawn_ends_the_call(ordered: tuple[Recordings, Loop, Call]) -> None:
    recordings, loop, call = ordered
    recordings.obey(RecordOrder(id="r", tokens=5, seconds=60))
    call.go_on.set()
    recordings.obey(RecordOrder())
    assert call.done.wait(WAIT_S)
    assert loop.recorder is None


def test_the_same_order_again_changes_nothing(ordered: tuple[Recordings, Loop, Call]) -> None:
    recordings, loop, call = ordered
    recordings.obey(RecordOrder(id="r", tokens=5, seconds=60))
    before = loop.recorder
    recordings.obey(RecordOrder(id="r", tokens=5, seconds=60))
    assert loop.recorder is before
    recordings.stop()
    call.go_on.set()
    assert call.done.wait(WAIT_S)


def test_a_call_that_fails_takes_the_recorder_off(ordered: tuple[Recordings, Loop, Call]) -> None:
    recordings, loop, call = ordered
    call.error = grpc.RpcError("away")
    recordings.obey(RecordOrder(id="r", tokens=5, seconds=60))
    assert loop.detached.wait(WAIT_S)


def test_what_waits_is_bounded(ordered: tuple[Recordings, Loop, Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_WAITING_BYTES", 100)
    recordings, _, call = ordered
    recordings.obey(RecordOrder(id="r", tokens=50, seconds=60))
    assert call.begun.wait(WAIT_S)
    current = recordings._current
    assert [current._offer(routed(4)) for _ in range(4)] == [True, True, False, False]
    recordings.stop()
    call.go_on.set()
    assert call.done.wait(WAIT_S)
    assert sum(chunk.left_out for chunk in call.chunks) == 8
    assert sum(sum(chunk.lengths) for chunk in call.chunks) == 8
