"""What the loop promises besides the right text: sampling, cancellation, admission, failures, memory."""

import math

import numpy as np
import pytest
import torch

from flexpert_workers.errors import CapacityError, InvalidRequest, Overloaded, PassAbandoned
from flexpert_workers.messages.generation import Finish

SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 11}


@pytest.fixture
def sampled_alone(bench, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, make_prompt(30), max_tokens=40, **SAMPLING)
    return one.run()[0].tokens


def test_sampled_text_is_the_same_in_a_mixed_batch(bench, make_prompt, sampled_alone):
    mixed = bench(kv_cache_bytes=8 << 20, max_batch_tokens=24)
    for number in range(1, 6):
        mixed.add(number, make_prompt(9 * number), max_tokens=20, temperature=0.5 * (number % 3), seed=number)
        mixed.step()
    mixed.add(0, make_prompt(30), max_tokens=40, **SAMPLING)
    assert mixed.run()[0].tokens == sampled_alone


def test_sampled_text_is_the_same_after_preemption(bench, make_prompt, sampled_alone):
    tight = bench(kv_cache_bytes=8 << 20, block_tokens=8)
    tight.blocks.allocate(tight.blocks.num_free - 13)
    for number in (1, 2):
        tight.add(number, make_prompt(20, seed=number), max_tokens=40)
    tight.add(0, make_prompt(30), max_tokens=40, **SAMPLING)
    assert tight.run()[0].tokens == sampled_alone
    assert tight.scheduler.num_preemptions > 0


@pytest.mark.parametrize("kept", [1, 17, 39])
def test_sampled_text_goes_on_where_it_was_resumed(bench, make_prompt, sampled_alone, kept):
    another = bench(kv_cache_bytes=8 << 20)
    another.add(0, make_prompt(30), output=sampled_alone[:kept], max_tokens=40, **SAMPLING)
    answer = another.run()[0]
    assert answer.tokens == sampled_alone[kept:]
    assert answer.positions == list(range(kept, 40))


def test_seeds_differ(bench, make_prompt, sampled_alone):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, make_prompt(30), max_tokens=40, **{**SAMPLING, "seed": 12})
    assert one.run()[0].tokens != sampled_alone


def test_logprobs_are_those_of_the_model(bench, families, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    prompt = make_prompt(12)
    one.add(0, prompt, max_tokens=5, temperature=0.7, top_k=3, seed=3, logprobs=2)
    answer = one.run()[0]
    with torch.no_grad():
        logits = families["mixtral"].reference(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)
    chosen = expected[torch.arange(5), torch.tensor(answer.tokens)]
    np.testing.assert_allclose(answer.logprobs, chosen.numpy(), atol=1e-4)
    for row, top in zip(expected, answer.top, strict=True):
        best = row.topk(2)
        assert [token for token, _ in top] == best.indices.tolist()
        np.testing.assert_allclose([value for _, value in top], best.values.numpy(), atol=1e-4)


def test_stop_token_ends_the_text_and_is_included(bench, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, make_prompt(12), max_tokens=20)
    tokens = one.run()[0].tokens
    stop = tokens[6]
    one.add(1, make_prompt(12), max_tokens=20, stop_token_ids=(stop,))
    answer = one.run()[1]
    assert answer.tokens == tokens[: tokens.index(stop) + 1]
    assert answer.finish is Finish.STOP


def test_cancel_frees_pages_at_once(bench, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, make_prompt(100), max_tokens=20)
    one.add(1, make_prompt(40), max_tokens=20)
    one.step()
    assert one.blocks.num_used == 7 + 3
    one.engine.cancel(0)
    assert one.blocks.num_used == 3
    one.engine.cancel(0)  # it may just have ended: not an error
    assert len(one.run()[1].tokens) == 20
    assert one.blocks.num_used == 0


def test_requests_that_wait_can_be_cancelled(bench, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, make_prompt(10))
    one.engine.cancel(0)
    assert not one.engine.has_work
    assert one.engine.step() == {}


def test_shared_prefix_is_held_once(bench, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, [*make_prompt(64), 1], max_tokens=4)
    one.step()
    one.add(1, [*make_prompt(64), 2], max_tokens=4)
    one.step()
    assert one.blocks.num_used == 5 + 1
    answers = one.run()
    assert answers[0].cached_tokens == 0
    assert answers[1].cached_tokens == 64


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 500}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"logprobs": 21}, "logprobs"),
        ({"seed": -1}, "seed"),
    ],
)
def test_admission_names_the_field(bench, make_prompt, changes, field):
    one = bench(kv_cache_bytes=8 << 20)
    with pytest.raises(InvalidRequest) as raised:
        one.add(0, make_prompt(30), **changes)
    assert raised.value.field == field
    assert not one.engine.has_work


@pytest.mark.parametrize(
    ("prompt", "output", "field"),
    [
        ([], [], "prompt"),
        ([256], [], "prompt"),
        ([-1], [], "prompt"),
        ([1] * 512, [], "prompt"),
        ([1], [999], "resume_token_ids"),
        ([1], [2] * 16, "resume_token_ids"),
    ],
)
def test_admission_checks_the_tokens(bench, prompt, output, field):
    one = bench(kv_cache_bytes=8 << 20)
    with pytest.raises(InvalidRequest) as raised:
        one.add(0, prompt, output)
    assert raised.value.field == field


def test_admission_refuses_what_the_whole_cache_does_not_hold(bench, make_prompt):
    small = bench(kv_cache_bytes=64 << 10)
    limit = small.scheduler.limits.cache_tokens
    assert limit < 512
    with pytest.raises(InvalidRequest, match="kvCacheMemory"):
        small.add(0, make_prompt(20), max_tokens=limit)
    small.add(0, make_prompt(20), max_tokens=limit - 20)
    assert len(small.run()[0].tokens) == limit - 20


def test_waiting_queue_is_bounded(bench, make_prompt):
    one = bench(kv_cache_bytes=8 << 20, max_waiting=2)
    one.add(0, make_prompt(5))
    one.add(1, make_prompt(5))
    with pytest.raises(Overloaded):
        one.add(2, make_prompt(5))
    one.step()
    one.add(2, make_prompt(5))
    assert all(len(answer.tokens) == 16 for answer in one.run().values())


def test_a_number_in_use_is_refused(bench, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, make_prompt(5))
    with pytest.raises(InvalidRequest):
        one.add(0, make_prompt(5))


def test_abandoned_pass_is_computed_again(bench, families, make_prompt):
    one = bench(kv_cache_bytes=8 << 20, max_batch_tokens=16)
    for number, length in enumerate((30, 9, 14)):
        one.add(number, make_prompt(length))
    abandoned = 0
    while one.engine.has_work:
        if abandoned < 12:
            one.dispatcher.failures.append(PassAbandoned("no worker answered", ((0, 1),)))
            used = one.blocks.num_used
            with pytest.raises(PassAbandoned):
                one.step()
            abandoned += 1
            assert one.blocks.num_used >= used
        one.step()
    assert one.engine.statistics().abandoned_passes == 12
    for number, length in enumerate((30, 9, 14)):
        assert one.answers[number].tokens == families["mixtral"].greedy(make_prompt(length), 16)


def test_one_requests_error_fails_it_alone(bench, families, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    bad = {}

    def break_on_bad_rows(layer, hidden, output):
        if layer == 0 and bad and bool((hidden == bad["row"]).all(dim=-1).any()):
            raise ArithmeticError("this row cannot be computed")
        return output

    one.dispatcher.poison = break_on_bad_rows
    for number, length in enumerate((30, 9, 14)):
        one.add(number, make_prompt(length))
    one.step()
    recorded = []
    one.dispatcher.poison = lambda layer, hidden, output: recorded.append(hidden.clone()) or output
    one.add(3, [7, 7, 7])
    one.step()
    bad["row"] = recorded[0][-1]  # the last row of layer 0 is the new request's
    one.engine.cancel(3)
    one.dispatcher.poison = break_on_bad_rows
    one.add(4, [7, 7, 7])
    answers = one.run()
    assert answers[4].rejected is not None
    assert answers[4].rejected.kind == "error"
    assert "cannot be computed" in answers[4].rejected.message
    for number, length in enumerate((30, 9, 14)):
        assert answers[number].tokens == families["mixtral"].greedy(make_prompt(length), 16)
    assert one.blocks.num_used == 0


def test_numbers_that_are_not_finite_stay_with_their_request(bench, families, make_prompt):
    one = bench(kv_cache_bytes=8 << 20)
    one.add(0, make_prompt(30))
    one.add(1, make_prompt(40, seed=1))

    def spoil(layer, hidden, output):
        output[-1] = math.nan  # the last row of the pass is the second request's
        return output

    one.dispatcher.poison = spoil
    one.step()
    one.dispatcher.poison = None
    one.add(2, make_prompt(40, seed=1))
    answers = one.run()
    assert answers[1].rejected is not None
    assert answers[0].tokens == families["mixtral"].greedy(make_prompt(30), 16)
    assert answers[2].tokens == families["mixtral"].greedy(make_prompt(40, seed=1), 16)


def test_no_expert_weight_is_resident(family, bench_of):
    statistics = bench_of(family, kv_cache_bytes=8 << 20).engine.statistics()
    experts = sum(
        parameter.nbytes
        for path in family.checkpoint.moe_layer_modules
        for parameter in family.reference.get_submodule(path).parameters()
    )
    everything = {tensor.data_ptr(): tensor.nbytes for tensor in family.reference.parameters()}
    buffers = sum(tensor.nbytes for tensor in family.reference.buffers())
    assert experts > 0
    assert statistics.expert_bytes == 0
    assert statistics.dense_bytes == sum(everything.values()) + buffers - experts


def test_cache_stays_within_its_budget(family, bench_of):
    for budget in (300_000, 1 << 20, 64 << 20):
        engine = bench_of(family, kv_cache_bytes=budget).engine
        assert 0 < engine.statistics().kv_bytes <= budget
    with pytest.raises(CapacityError, match="kvCacheMemory"):
        bench_of(family, kv_cache_bytes=4096)
