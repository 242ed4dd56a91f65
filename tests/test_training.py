"""The script that trained the example's model: the same seed gives the same weights, and its loads are skewed."""

import importlib.util
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples" / "models" / "tiny-moe"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_tiny_moe", ROOT / "examples" / "train_tiny_moe.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def few_files(script, monkeypatch):
    held_out, kept = [], []
    for name, text in script.library_files():
        (held_out if script.is_held_out(name) else kept).append((name, text))
    files = kept[:8] + held_out[:2]
    monkeypatch.setattr(script, "library_files", lambda: files)


def trained(script, folder, seed):
    script.train(script.Recipe(steps=2, batch=2, sequence=32, seed=seed), folder, MODEL, export_every_s=1000)
    return load_file(folder / "model.safetensors")


def test_the_same_seed_gives_the_same_weights(script, few_files, tmp_path):
    first, again = trained(script, tmp_path / "a", 3), trained(script, tmp_path / "b", 3)
    other = trained(script, tmp_path / "c", 4)
    assert all(first[name].equal(again[name]) for name in first)
    assert any(not first[name].equal(other[name]) for name in first)


def test_the_shipped_models_loads_are_skewed_as_its_card_says(script, monkeypatch):
    monkeypatch.setattr(script, "PROMPTS", ("def ",))
    report = script.report_on(MODEL, max_tokens=4096)
    assert [len(row) for row in report.loads] == [16, 16, 16, 16]
    assert min(report.skew()) > 1.5
    assert report.completions["def "].strip()
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 10_000_000
