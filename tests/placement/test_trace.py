"""Routing traces: the file format, what is refused, the counts, and the consistency metrics by their definitions."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from flexpert_placement.consistency import consistency, drift
from flexpert_placement.trace import InvalidTrace, RoutingTrace, load_trace, save_trace, trace_of


def random_trace(seed: int = 0, tokens: int = 60, layers: int = 2, experts: int = 8, k: int = 2) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :k]
    return trace_of(chosen, np.array([tokens // 3, tokens - tokens // 3]), experts)


def test_a_saved_trace_is_read_back(tmp_path: Path) -> None:
    trace = random_trace()
    save_trace(tmp_path / "one.npz", trace)
    again = load_trace(tmp_path / "one.npz")
    assert np.array_equal(again.experts, trace.experts)
    assert again.sequence_lengths.tolist() == [20, 40]
    assert again.num_experts == 8


def test_a_trace_that_does_not_say_how_many_experts_there_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", experts=np.array([[[0, 5]]], np.uint8), sequence_lengths=np.array([1], np.int32))
    assert load_trace(tmp_path / "t.npz").num_experts == 6
    assert load_trace(tmp_path / "t.npz", num_experts=64).loads().shape == (1, 64)


@pytest.mark.parametrize(
    ("experts", "lengths", "num_experts", "says"),
    [
        (np.zeros((3, 2), int), [3], 4, "whole numbers \\[tokens, layers, k\\]"),
        (np.zeros((3, 2, 1)), [3], 4, "float64"),
        (np.zeros((3, 2, 1), int), [2], 4, "add up to 2 and there are 3 tokens"),
        (np.full((3, 2, 1), 9), [3], 4, "experts 9 to 9 occur, a layer has 4"),
        (np.zeros((3, 2, 2), int), [3], 4, "token 0 chose one expert twice in layer 0"),
        (np.zeros((3, 2, 1), int), [[3]], 4, "\\[sequences\\]"),
        (np.zeros((3, 2, 1), int), [3], 99999, "99999 experts a layer"),
    ],
)
def test_arrays_that_are_no_trace(experts: np.ndarray, lengths: list[int], num_experts: int, says: str) -> None:
    with pytest.raises(InvalidTrace, match=says):
        trace_of(experts, np.array(lengths), num_experts)


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrace, match="cannot read the trace"):
        load_trace(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InvalidTrace, match="not a routing trace"):
        load_trace(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", loads=np.zeros(3))
    with pytest.raises(InvalidTrace, match="lacks experts, sequence_lengths"):
        load_trace(tmp_path / "other.npz")


def test_counts_agree_with_counting() -> None:
    trace = random_trace()
    loads, together, steps = trace.loads(), trace.coactivation(), trace.transitions()
    for first, second in product(range(8), repeat=2):
        rows = trace.experts
        has = [(rows[:, layer] == first).any(axis=1) & (rows[:, layer] == second).any(axis=1) for layer in range(2)]
        assert [together[layer, first, second] for layer in range(2)] == [mask.sum() for mask in has]
        moved = (rows[:, 0] == first).any(axis=1) & (rows[:, 1] == second).any(axis=1)
        assert steps[0, first, second] == pytest.approx(moved.sum() / 4)
    assert np.array_equal(np.einsum("lee->le", together), loads)
    assert steps.sum() == pytest.approx(trace.num_tokens)


def test_halves_share_the_tokens() -> None:
    trace = random_trace()
    for parts in (trace.halves(), trace.halves(block=7)):
        assert sum(part.num_tokens for part in parts) == trace.num_tokens
        assert np.array_equal(sum(part.loads() for part in parts), trace.loads())
        assert all(part.sequence_lengths.sum() == part.num_tokens for part in parts)


def test_srp_is_the_best_f1_over_all_thresholds() -> None:
    trace, segment = random_trace(tokens=30), 4
    expected = []
    for layer in range(trace.num_layers):
        counts = np.concatenate(
            [
                [trace.chosen(layer)[start : start + segment].sum(axis=0) for start in range(part.start, part.stop - 3)]
                for part in trace.sequences()
            ]
        )
        scores = []
        for least in range(segment + 1):
            on = counts >= least
            true, wrong, missed = counts[on].sum(), (segment - counts[on]).sum(), counts[~on].sum()
            scores.append(2 * true / (2 * true + wrong + missed))
        expected.append(max(scores))
    assert consistency(trace, segment).srp == pytest.approx(np.mean(expected))


def test_routing_that_never_changes_is_perfectly_consistent() -> None:
    trace = trace_of(np.tile(np.array([[[1, 3], [0, 2]]]), (40, 1, 1)), np.array([40]), 4)
    found = consistency(trace, segment=8, cache_ratio=1.0)
    assert (found.srp, found.srp_size, found.sch, found.sch_segment) == (1.0, 1.0, 1.0, 1.0)


def test_the_oracle_cache_drops_what_is_used_least_soon() -> None:
    # Experts 0, 1, 2 with room for two: at the third token 0 goes if the next token is 1, and then nothing is missed.
    trace = trace_of(np.array([0, 1, 2, 1, 2, 1])[:, None, None], np.array([6]), 3)
    assert consistency(trace, segment=1, cache_ratio=2.0).sch == pytest.approx(5 / 6)


def test_a_segment_longer_than_every_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="no sequence of the trace has 64 tokens"):
        consistency(random_trace(), segment=64)


def test_drift_is_the_share_of_load_that_went_elsewhere() -> None:
    same = drift(np.array([[1.0, 3.0]]), np.array([[2.0, 6.0]]))
    assert (same.mean_distance, same.mean_correlation) == (0.0, pytest.approx(1.0))
    other = drift(np.array([[4.0, 0.0]]), np.array([[1.0, 3.0]]))
    assert (other.mean_distance, other.mean_correlation) == (0.75, pytest.approx(-1.0))
