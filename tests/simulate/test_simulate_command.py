"""`flexpert simulate`: its table, its files, and what it refuses."""

import json
from pathlib import Path

import pytest

from flexpert_operator.cli.main import main

SHORT = ["simulate", "--duration", "300", "--rate", "5", "--arrivals", "poisson"]


def test_a_row_for_each_scaler_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.svg"
    names = ["flexpert", "none", "replicas", "restart", "hpa", "oracle"]
    assert main([*SHORT, "--scalers", ",".join(names), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[3:]] == names
    assert "DEVICE-HOURS" in out
    assert plot.read_text().lstrip().startswith("<?xml")


def test_json_device_profiles_and_files_of_arrivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "device.json").write_text(json.dumps({"worker_token_s": 0.002}))
    (tmp_path / "load.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{second},100,20\n" for second in range(200))
    )
    files = ["--arrivals", str(tmp_path / "load.csv"), "--device", str(tmp_path / "device.json")]
    assert main(["simulate", *files, "--format", "json", "--scalers", "flexpert,none"]) == 0
    ours, fixed = json.loads(capsys.readouterr().out)
    assert (ours["requests"], fixed["transitions"]) == (200, 0)
    assert ours["attainment"] > 0.9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arrivals", "none.csv"], "cannot read none.csv"),
        (["--arrivals", "weekly"], "--arrivals weekly: it has to be"),
        (["--scalers", "magic"], "'magic' is not one of"),
        (["--devices", "1"], "spec.budget.devices"),
        (["--device", "none.json"], "cannot read none.json"),
    ],
)
def test_what_is_refused_is_said(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, *options]) == 1
    assert said in capsys.readouterr().err
