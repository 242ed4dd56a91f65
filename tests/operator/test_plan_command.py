"""`flexpert plan` on traces: what it says and writes, and how it answers what was asked wrongly."""

import builtins
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexpert_operator.cli import heatmap
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.main import main
from flexpert_operator.cli.plan_report import worth
from flexpert_placement.formats import sglang, vllm
from flexpert_placement.trace import RoutingTrace, save_trace, trace_of
from flexpert_placement.types import ExpertId, PlacementProblem, WorkerCapacity

Plan = Callable[..., tuple[int, str, str]]
SVG = "{http://www.w3.org/2000/svg}"


def skewed_trace(seed: int = 0, tokens: int = 300, layers: int = 2, experts: int = 8, k: int = 2) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    weights = 1.0 / (1 + np.argsort(rng.random((layers, experts)), axis=1))
    scores = rng.random((tokens, layers, experts)) ** (1 / weights)
    return trace_of(np.argsort(-scores, axis=2)[:, :, :k], np.array([tokens // 3, tokens - tokens // 3]), experts)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.npz"
    save_trace(path, skewed_trace())
    return str(path)


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["plan", "--time-limit", "0.3", *arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def answer(plan: Plan, *arguments: str) -> dict[str, Any]:
    status, out, error = plan(*arguments, "--format", "json")
    assert (status, error) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_text_says_what_is_better_and_why(plan: Plan, trace: str) -> None:
    status, out, _ = plan("--trace", trace, "--workers", "4", "--slots", "3")
    assert status == 0
    assert "2 layers of 8 experts on 4 workers" in out
    for said in ("CONTIGUOUS", "imbalance", "fan-out", "proven to be at least", "SRP", "SCH", "first half", "worker-3"):
        assert said in out
    assert "nothing was changed" in out


def test_the_numbers_agree(plan: Plan, trace: str) -> None:
    found = answer(plan, "--trace", trace, "--workers", "4", "--slots", "3")
    assert found["after"]["imbalance"] < found["before"]["imbalance"]
    assert found["makespanBound"] <= found["makespan"] + 1e-9
    assert found["before"]["name"] == "contiguous"
    assert found["moves"] == []
    assert found["predicted"] is None
    shares: dict[tuple[int, int], float] = {}
    for replica in found["placement"]:
        key = (replica["layer"], replica["expert"])
        shares[key] = shares.get(key, 0.0) + replica["share"]
    assert len(shares) == 16
    assert all(share == pytest.approx(1) for share in shares.values())


def test_terms_are_what_counting_says() -> None:
    trace = skewed_trace(tokens=50)
    placement = {ExpertId(layer, index): {f"w{index % 3}": 1.0} for layer in range(2) for index in range(8)}
    terms = worth(((0.0,) * 8,) * 2, trace, placement, tuple(WorkerCapacity(f"w{number}", 0) for number in range(3)))
    assert terms.fan_out == pytest.approx(np.mean([len(set(row % 3)) for token in trace.experts for row in token]))
    steps = [one % 3 != other % 3 for token in trace.experts for one in token[0] for other in token[1]]
    assert terms.transitions == pytest.approx(np.mean(steps))


def test_from_what_is_there_moves_are_counted(plan: Plan, trace: str, tmp_path: Path) -> None:
    first = tmp_path / "first.json"
    base = ("--trace", trace, "--workers", "4", "--slots", "3", "--expert-bytes", "1Mi")
    assert plan(*base, "--format", "json", "-o", str(first))[:2] == (0, "")
    again = answer(plan, *base, "--from-placement", str(first))
    assert again["moves"] == []
    other = tmp_path / "other.npz"
    save_trace(other, skewed_trace(seed=5))
    changed = ("--trace", str(other), *base[2:], "--from-placement", str(first))
    found = answer(plan, *changed)
    assert found["predicted"]["movedBytes"] == len(found["moves"]) * 2**20 > 0
    text = plan(*changed)[1]
    assert "FIRST.JSON" in text
    assert " moves, " in text
    few = answer(plan, *changed, "--budget-moves", "3")
    assert len(few["moves"]) <= 3


def test_the_status_of_a_pool_is_a_placement_too(plan: Plan, trace: str, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "layers": {"0": ["0(25%)", *map(str, range(1, 4))], "1": list(map(str, range(4)))}},
        {"id": "b", "layers": {"0": ["0(75%)", *map(str, range(4, 8))], "1": list(map(str, range(4, 8)))}},
    ]
    path = tmp_path / "status.json"
    path.write_text(json.dumps({"epoch": "1.1", "workers": rows}))
    arguments = ("--trace", trace, "--workers", "2", "--slots", "5", "--from-placement", str(path))
    found = answer(plan, *arguments)
    assert found["before"]["name"] == "status.json"
    assert {replica["worker"] for replica in found["placement"]} == {"a", "b"}


@pytest.mark.parametrize("form", ["sglang", "vllm"])
def test_other_engines_files_are_written_and_read(plan: Plan, trace: str, tmp_path: Path, form: str) -> None:
    path = tmp_path / "map.json"
    base = ("--trace", trace, "--workers", "4", "--slots", "3")
    dense = ("--dense-layers", "0") if form == "sglang" else ()
    status, out, said = plan(*base, "--format", form, "-o", str(path), *dense)
    assert (status, out) == (0, "")
    assert "4 redundant experts a layer" in said
    read = sglang.loads(path.read_text(), 4, (0,)) if form == "sglang" else vllm.loads(path.read_text())
    assert read.experts.shape == (2, 4, 3)
    found = answer(plan, *base, "--from-placement", str(path), *dense)
    assert f"imbalance {found['before']['imbalance']:.4f}" in said


def test_uneven_workers_come_from_a_file(plan: Plan, trace: str, tmp_path: Path) -> None:
    path = tmp_path / "workers.json"
    rows = [{"id": "big", "slots": 6, "speed": 2, "node": "x"}, {"memory": "6Mi", "node": "y", "zone": "z"}]
    path.write_text(json.dumps(rows))
    found = answer(plan, "--trace", trace, "--workers", str(path), "--expert-bytes", "1Mi")
    by_worker = {name: sum(one["worker"] == name for one in found["placement"]) for name in ("big", "worker-1")}
    assert by_worker["worker-1"] <= 6 < by_worker["big"] <= 12
    refused = plan("--trace", trace, "--workers", str(path), "--expert-bytes", "1Mi", "--format", "vllm")
    assert (refused[0], "workers of one size" in refused[2]) == (1, True)


def test_the_heat_map_shows_every_replica(plan: Plan, trace: str, tmp_path: Path) -> None:
    path = tmp_path / "map.svg"
    status, out, _ = plan(
        "--trace", trace, "--workers", "4", "--slots", "2", "--heat-map", str(path), "--format", "json"
    )
    assert status == 0
    titles = [title.text or "" for title in ElementTree.parse(path).iter(f"{SVG}title")]
    drawn = {title for title in titles if ", expert " in title}
    assert len(drawn) == len(json.loads(out)["placement"])
    assert {"worker-0", "worker-1", "worker-2", "worker-3"} <= set(titles)


def test_a_heat_map_of_many_small_cells_stays_on_its_page() -> None:
    problem = PlacementProblem(
        ((1.0,) * 255 + (50.0,),) * 3, 1, tuple(WorkerCapacity(f"w<{n}>", 99) for n in range(32))
    )
    placement = {ExpertId(layer, e): {f"w<{e % 32}>": 1.0} for layer in range(3) for e in range(256)}
    root = ElementTree.fromstring(heatmap.svg_of(heatmap.grid_of(problem, placement)))
    cells = list(root.iter(f"{SVG}rect"))[1:]
    assert len(cells) > 3 * 256
    assert max(float(cell.get("x", 0)) + float(cell.get("width", 0)) for cell in cells) < float(root.get("width", 0))


def test_colours_are_lighter_for_more_load() -> None:
    lightness = [
        sum(part * weight for part, weight in zip(heatmap.colour(load, 8.0), (299, 587, 114), strict=True))
        for load in range(9)
    ]
    assert lightness == sorted(lightness)
    assert len(set(lightness)) == 9


def test_a_png_is_drawn_where_matplotlib_is(plan: Plan, trace: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.png"
    assert plan("--trace", trace, "--workers", "4", "--heat-map", str(path))[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_png_is_refused_before_anything_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CliError, match=r"pip install 'flexpert\[plots\]'"):
        heatmap.check_path("map.png")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--trace FILE"),
        (("--trace", "TRACE"), "--workers N"),
        (("--trace", "absent.npz", "--workers", "2"), "cannot read the trace absent.npz"),
        (("--trace", "TRACE", "--workers", "absent.json"), "--workers absent.json"),
        (("--trace", "TRACE", "--workers", "4", "--slots", "1"), "--slots or --memory-per-worker"),
        (("--trace", "TRACE", "--workers", "4", "--slots", "2", "--memory-per-worker", "1Gi"), "give one of them"),
        (("--trace", "TRACE", "--workers", "4", "--memory-per-worker", "1Gi"), "give --expert-bytes"),
        (("--trace", "TRACE", "--workers", "4", "--objective", "cross-node"), "--nodes N"),
        (("--trace", "TRACE", "--workers", "4", "--heat-map", "map.pdf"), ".svg or .png"),
        (("--trace", "TRACE", "--workers", "4", "--caution", "-1"), "K at least 0"),
        (("--trace", "TRACE", "--workers", "4", "--format", "sglang", "-o", "map.txt"), "ends in .json"),
        (("--trace", "TRACE", "--workers", "4", "--from-placement", "absent.json"), "--from-placement absent.json"),
        (("--trace", "TRACE", "--workers", "4", "--from-placement", "TRACE"), "--from-placement"),
    ],
)
def test_what_was_asked_wrongly_is_one_line_that_says_what_to_do(
    plan: Plan, trace: str, arguments: tuple[str, ...], says: str
) -> None:
    status, out, error = plan(*(trace if word == "TRACE" else word for word in arguments))
    assert (status, out) == (1, "")
    assert error.startswith("flexpert: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", [("--slots", "0"), ("--expert-bytes", "x"), ("--dense-layers", "a-b")])
def test_options_that_cannot_be_read_are_refused_by_name(trace: str, option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--trace", trace, "--workers", "2", *option])
