"""Greedy text equals transformers' `generate`, whatever the schedule does."""

import pytest

from flexpert_workers.engine import batch

LENGTHS = (7, 19, 41, 100, 1, 33)
MAX_TOKENS = 24


@pytest.fixture
def expected(family, make_prompt):
    return {length: family.greedy(make_prompt(length), MAX_TOKENS) for length in LENGTHS}


@pytest.mark.parametrize("max_batch_tokens", [2048, 16], ids=["whole prompts", "chunked prefill"])
def test_mixed_batch_equals_generate(family, bench_of, make_prompt, expected, max_batch_tokens):
    bench = bench_of(family, max_batch_tokens=max_batch_tokens, kv_cache_bytes=32 << 20)
    for length in LENGTHS:
        bench.add(length, make_prompt(length), max_tokens=MAX_TOKENS)
        bench.step()  # arrivals between steps, so that prefills meet decodes
    answers = bench.run()
    assert {length: answers[length].tokens for length in LENGTHS} == expected
    assert all(answer.positions == list(range(MAX_TOKENS)) for answer in answers.values())
    assert bench.blocks.num_used == 0


@pytest.mark.parametrize("max_batch_tokens", [2048, 16], ids=["whole prompts", "chunked prefill"])
def test_bfloat16_stays_close_to_generate(family, bench_of, make_prompt, expected, max_batch_tokens):
    bench = bench_of(family, "BFloat16", max_batch_tokens=max_batch_tokens, kv_cache_bytes=32 << 20)
    for length in LENGTHS:
        bench.add(length, make_prompt(length), max_tokens=MAX_TOKENS)
    answers = bench.run()
    assert all(len(answer.tokens) == MAX_TOKENS for answer in answers.values())
    # Rounding parts the texts sooner or later; without it they would agree throughout.
    first_tokens = sum(answers[length].tokens[:2] == expected[length][:2] for length in LENGTHS)
    assert first_tokens >= len(LENGTHS) / 2


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_long_chunks_equal_generate(families, bench_of, make_prompt, monkeypatch, name):
    monkeypatch.setattr(batch, "LONG_TOKENS", 30)
    bench = bench_of(families[name], max_batch_tokens=32, kv_cache_bytes=32 << 20)
    for length in LENGTHS:
        bench.add(length, make_prompt(length), max_tokens=MAX_TOKENS)
    answers = bench.run()
    for length in LENGTHS:
        assert answers[length].tokens == families[name].greedy(make_prompt(length), MAX_TOKENS)


def test_prefix_hits_and_preemption_change_nothing(family, bench_of, make_prompt, expected):
    bench = bench_of(family, max_batch_tokens=64, block_tokens=8, kv_cache_bytes=1 << 20)
    # Little more is left than the longest request takes: the six together cannot stay.
    held = bench.blocks.allocate(bench.blocks.num_free - 22)
    for length in LENGTHS:
        bench.add(length, make_prompt(length), max_tokens=MAX_TOKENS)
    answers = bench.run()
    assert bench.scheduler.num_preemptions > 0
    assert {length: answers[length].tokens for length in LENGTHS} == expected
    bench.add(100, make_prompt(100), max_tokens=MAX_TOKENS)
    again = bench.run()[100]
    assert again.tokens == expected[100]
    assert again.cached_tokens >= 8
    assert bench.blocks.num_used == len(held)
