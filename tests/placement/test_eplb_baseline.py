"""The benchmark's EPLB is the published algorithm: its README's example, and what its steps promise."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "placement_eplb.py"


@pytest.fixture(scope="module")
def baseline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("placement_eplb", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_published_example(baseline: ModuleType) -> None:
    loads = np.array(
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ],
        dtype=float,
    )
    tables = [baseline.eplb_layer(row, slots=16, workers=8, nodes=2, groups=4) for row in loads]
    expected = [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    for table, known in zip(tables, expected, strict=True):
        pairs = [sorted(table[slot : slot + 2].tolist()) for slot in range(0, 16, 2)]
        assert pairs == [sorted(known[slot : slot + 2]) for slot in range(0, 16, 2)]


def test_every_expert_is_served_in_full(baseline: ModuleType) -> None:
    loads = np.random.default_rng(0).pareto(1.5, (3, 16)) + 0.1
    shares = baseline.eplb(loads, slots=24, workers=4)
    assert np.allclose(np.nansum(shares, axis=2), 1.0)
    assert (np.isnan(shares).sum(axis=(1, 2)) >= 16 * 4 - 24).all()


def test_keeping_slots_changes_names_only(baseline: ModuleType) -> None:
    loads = np.random.default_rng(0).pareto(1.5, (2, 16)) + 0.1
    shares = baseline.eplb(loads, slots=24, workers=4)
    current = ~np.isnan(shares)[:, :, [2, 0, 3, 1]]
    kept = baseline.keep_slots(shares, current)
    assert np.array_equal(~np.isnan(kept), current)


def test_uneven_packs_are_refused(baseline: ModuleType) -> None:
    with pytest.raises(ValueError, match="5 items cannot be dealt evenly into 2 packs"):
        baseline.balanced_packing(np.ones(5), 2)
