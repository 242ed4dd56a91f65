"""`flexpert simulate --policy FILE`: the policy of a file, by the operator's own decisions."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexpert_operator.autoscale import Counters, Observation, PoolCount, Sizes
from flexpert_operator.cli.main import main
from flexpert_operator.cli.policy_file import AsOperated, moment, read_policy
from flexpert_operator.simulate import Device

Object = dict[str, Any]
EXAMPLE = Path(__file__).parents[2] / "examples" / "autoscaling" / "policy.yaml"
LOAD = "".join(f"{second},100,20\n" for second in range(120))
ASLEEP = {"engines": {"min": 0}, "experts": {"min": 0}, "idle": {"afterSeconds": 60}}


def written(folder: Path, spec: Object, *others: Object) -> str:
    spec = {"targetRef": {"name": "tiny"}, "objectives": {"ttftMilliseconds": 500, "tpotMilliseconds": 50}} | spec
    policy = {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEAutoscalingPolicy", "metadata": {"name": "p"}}
    file = folder / "policy.yaml"
    file.write_text(yaml.safe_dump_all([policy | {"spec": spec}, *others]))
    return str(file)


def simulated(folder: Path, capsys: pytest.CaptureFixture[str], policy: str, *options: str) -> list[Object]:
    load = folder / "load.csv"
    load.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{LOAD}900,100,20\n")
    command = [
        "simulate",
        "--policy",
        policy,
        "--arrivals",
        str(load),
        "--scalers",
        "flexpert,none",
        "--format",
        "json",
    ]
    assert main([*command, *options]) == 0, capsys.readouterr().err
    found: list[Object] = json.loads(capsys.readouterr().out)
    return found


def test_the_example_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, fixed = simulated(tmp_path, capsys, str(EXAMPLE))
    assert (ours["requests"], fixed["transitions"]) == (121, 0)


def test_a_pool_that_may_idle_does_and_costs_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promptly = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}
    awake, _ = simulated(tmp_path, capsys, written(tmp_path, {}))
    bounds = {pool: ASLEEP[pool] | promptly for pool in ("engines", "experts")}
    asleep, _ = simulated(tmp_path, capsys, written(tmp_path, ASLEEP | bounds))
    assert asleep["deviceHours"] < 0.5 * awake["deviceHours"]
    assert any("to 0 engines and 0 workers" in one["reason"] for one in asleep["changes"])
    assert asleep["ttftSeconds"] is not None, "the last request woke it"


def test_windows_of_the_schedule_hold_by_the_time_at_which_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    window = {"start": "0 8 * * 1-5", "durationSeconds": 36000, "timeZone": "Europe/Zurich", "experts": 12}
    file = written(tmp_path, {"schedule": [window]})
    night, _ = simulated(tmp_path, capsys, file)
    day, _ = simulated(tmp_path, capsys, file, "--begin", "2026-07-06T08:30:00+02:00")
    assert (night["mostDevices"] < 12 < day["mostDevices"], day["mostDevices"]) == (True, 13)


def test_workers_come_in_pods_of_the_target_beside_it(tmp_path: Path) -> None:
    target = {
        "apiVersion": "flexpert.io/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"source": "file:///m"},
            "experts": {"workers": 4, "workersPerPod": 4, "memoryPerWorker": "1Gi"},
        },
    }
    spec = {"experts": {"min": 4, "max": 32}, "budget": {"devices": 24}, "pause": True, "dryRun": True}
    device = Device(layers=2, experts=32, expert_bytes=100 << 20)
    file = read_policy(written(tmp_path, spec, target), device)
    assert file.start(Sizes(1, 1)) == Sizes(1, 8), "64 experts into workers with room for nine each"
    scaler = AsOperated(Sizes(1, 8), file.policy, device.profile(), file=file, begin_s=moment("2026-01-05"))
    counters, sizes = Counters(), Sizes(1, 8)
    for number in range(1, 9):
        counters = Counters(2e3 * number, 2e4 * number, 2e3 * number, 2e5 * number)
        pools = PoolCount(sizes.engines, sizes.engines), PoolCount(sizes.experts, sizes.experts)
        sizes, why = scaler.decide(Observation(10.0 * number, *pools, 10.0 * number, counters))
        assert sizes.experts % 4 == 0, why
    assert sizes.experts > 8, "it acts, though paused"
    assert sizes.devices(file.policy) <= 24


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ({"engines": {"min": 3, "max": 2}}, (), "spec.engines.max"),
        ({"budget": {"devices": 1}}, (), "spec.budget.devices"),
        ({"schedule": [{"start": "0 25 * * *", "durationSeconds": 60}]}, (), "spec.schedule[0].start"),
        ({"engine": {}}, (), "no field spec.engine"),
        ({}, ("--tpot", "40"), "--tpot: --policy"),
    ],
)
def test_what_is_refused_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: Object, options: tuple[str, ...], said: str
) -> None:
    assert main(["simulate", "--duration", "60", "--policy", written(tmp_path, spec), *options]) == 1
    assert said in capsys.readouterr().err


def test_a_file_holds_one_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, {})
    Path(file).write_text(f"{Path(file).read_text()}---\n{Path(file).read_text()}")
    assert main(["simulate", "--policy", file]) == 1
    assert "has to hold one MoEAutoscalingPolicy, not 2" in capsys.readouterr().err
    assert main(["simulate", "--begin", "2026-01-05"]) == 1
    assert "--begin needs --policy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["simulate", "--policy", file, "--begin", "soon"])
    assert "soon is no time" in capsys.readouterr().err
