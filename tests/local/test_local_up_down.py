"""`flexpert local up`, `down` and `status` with their real processes (no MoEDeployment)."""

import os
import shutil
import signal
import stat
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexpert_operator.cli.main import main
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local import processes, state
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.processes import ProcessId
from flexpert_operator.local.state import API, OPERATOR, RUNTIME


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    monkeypatch.setenv("FLEXPERT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("FLEXPERT_SERVICES", raising=False)
    layout = Layout(tmp_path / "state")
    yield layout
    for process in state.read_parts(layout).values():
        processes.kill_session(process)
    shutil.rmtree(layout.scratch, ignore_errors=True)


def kill(process: ProcessId) -> None:
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while processes.alive(process):
        assert time.monotonic() < deadline, "it does not die"
        time.sleep(0.01)


def up() -> int:
    return main(["local", "up"])


def test_up_twice_then_half_dead_then_up_then_down(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert up() == 0
    assert "started kubeapi, runtime, operator" in capsys.readouterr().out
    first = state.read_parts(layout)
    for secret in (layout.kubeconfig, layout.token, layout.ray_token):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600

    with urllib.request.urlopen(layout.metrics.read_text().strip(), timeout=10) as answer:
        assert "flexpert_reconcile_seconds" in answer.read().decode()

    assert up() == 0
    assert "already up" in capsys.readouterr().out
    assert state.read_parts(layout) == first
    assert main(["local", "status"]) == 0
    assert capsys.readouterr().out.count("running") == 3

    url = layout.api_ready.read_text()
    for part in (API, OPERATOR):
        kill(first[part])
    assert main(["local", "status"]) == 1
    capsys.readouterr()
    assert up() == 0
    assert "started kubeapi, operator" in capsys.readouterr().out
    second = state.read_parts(layout)
    assert second[RUNTIME] == first[RUNTIME]
    assert layout.api_ready.read_text() == url
    assert Kube(api_client(layout.kubeconfig)).list(MOE_DEPLOYMENTS, "default", "") == []

    assert main(["local", "down"]) == 0
    assert capsys.readouterr().out == "down\n"
    assert [part for part in (*first.values(), *second.values()) if processes.session_members(part)] == []
    assert not layout.scratch.exists()
    left = {path.name for path in layout.root.iterdir()}
    assert not left & {"token", "ray-token", "kubeconfig", "processes.json", "pods.json", "services.json"}
    assert main(["local", "down"]) == 0
    assert capsys.readouterr().out == "nothing was up\n"


def test_down_ends_what_is_left_when_parts_have_died(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert up() == 0
    parts = state.read_parts(layout)
    kill(parts[OPERATOR])
    capsys.readouterr()
    assert main(["local", "down"]) == 0
    assert "not running any more: operator" in capsys.readouterr().out
    assert [part for part in parts.values() if processes.session_members(part)] == []


def test_a_part_that_does_not_come_up_shows_the_end_of_its_log(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    layout.root.mkdir()
    layout.api_state.write_text("not a snapshot")
    assert up() == 1
    error = capsys.readouterr().err
    assert "the kubeapi process ended at once" in error
    assert "kubeapi.log" in error


def test_a_volume_must_be_a_folder(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local", "up", "--volume", "models=/no/such"]) == 1
    assert "volume models: /no/such is not a folder" in capsys.readouterr().err
    assert main(["local", "up", "--volume", "models"]) == 1
    assert "write CLAIM=FOLDER" in capsys.readouterr().err


def test_two_commands_do_not_work_on_one_folder_at_once(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    with state.locked(layout):
        assert up() == 1
    assert "another `flexpert local` command" in capsys.readouterr().err


def test_status_when_nothing_is_up(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local", "status"]) == 1
    assert "not up" in capsys.readouterr().out
