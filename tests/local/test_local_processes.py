"""Sessions of real processes: what the runtime and `flexpert local` start and end."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_objects import NOW, born, container

from flexpert_operator.local import processes
from flexpert_operator.local.processes import Command, ProcessId
from flexpert_operator.local.runtime import books
from flexpert_operator.local.runtime.books import Books

# A process that has moved its child to a process group of its own, as Ray does, and stands by.
PARENT = """
import subprocess, sys, time
code = "import os, time; os.setpgid(0, 0); print('child', os.getpid(), flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, '-c', code])
child.wait()
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], ProcessId]]:
    started: list[ProcessId] = []

    def run(code: str) -> ProcessId:
        log = tmp_path / f"{len(started)}.log"
        identity, _ = processes.start(Command([sys.executable, "-c", code], dict(os.environ), log, tmp_path))
        started.append(identity)
        return identity

    yield run
    for identity in started:
        processes.kill_session(identity)


def test_a_recycled_pid_is_not_mistaken_for_the_process() -> None:
    me = processes.ProcessId(os.getpid(), 1.0)
    assert not processes.alive(me)
    assert os.getpid() not in processes.session_members(ProcessId(os.getsid(0), time.time() + 60))


def test_the_whole_session_ends_also_children_in_groups_of_their_own(
    start: Callable[[str], ProcessId], tmp_path: Path
) -> None:
    leader = start(PARENT)
    wait_for(lambda: b"child" in (tmp_path / "0.log").read_bytes())
    assert len(processes.session_members(leader)) == 2
    processes.end_sessions([leader], grace_s=5)
    assert processes.session_members(leader) == []


def test_a_session_ends_also_when_its_leader_is_dead_already(start: Callable[[str], ProcessId], tmp_path: Path) -> None:
    leader = start(PARENT)
    wait_for(lambda: b"child" in (tmp_path / "0.log").read_bytes())
    os.kill(leader.pid, signal.SIGKILL)
    wait_for(lambda: not processes.alive(leader))
    assert len(processes.session_members(leader)) == 1
    processes.end_sessions([leader], grace_s=5)
    assert processes.session_members(leader) == []


def test_who_does_not_hear_sigterm_is_killed_after_the_grace(start: Callable[[str], ProcessId], tmp_path: Path) -> None:
    leader = start(DEAF)
    wait_for(lambda: b"deaf" in (tmp_path / "0.log").read_bytes())
    processes.end_sessions([leader], grace_s=0.1)
    assert not processes.alive(leader)


def test_the_end_of_a_log() -> None:
    assert processes.tail(Path("/nowhere")) == ""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Books]:
    kept = Books(tmp_path / "pods.json", tmp_path / "scratch")
    yield kept
    kept.end_all(0)


POD = born(
    {
        "metadata": {"name": "p", "namespace": "default", "labels": {"ray.io/cluster": "moe"}},
        "spec": {"terminationGracePeriodSeconds": 7, "containers": [container("a", "pass")]},
    }
)
UID = POD["metadata"]["uid"]


def command(tmp_path: Path, code: str) -> Command:
    return Command([sys.executable, "-c", code], dict(os.environ), tmp_path / "log", tmp_path)


def test_admission_makes_folders_and_ports_that_are_not_given_twice(ledger: Books) -> None:
    ledger.admit(POD, ["grpc", "http"])
    pod = ledger.pods[UID]
    assert (pod.cluster, pod.grace_s, len(set(pod.ports.values()))) == ("moe", 7.0, 2)
    assert Path(pod.folder, "s").is_dir()
    assert (
        len(f"{pod.folder}/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
        - len(str(Path(pod.folder).parent))
        + len("/tmp/flexpert-1000-12345678")
        < 107
    )


def test_an_end_is_noticed_with_its_exit_code_and_the_next_start_counts_as_a_restart(
    ledger: Books, tmp_path: Path
) -> None:
    ledger.admit(POD, [])
    ledger.start(UID, "a", command(tmp_path, "raise SystemExit(3)"), NOW)
    wait_for(lambda: ledger.look(NOW + 1))
    found = ledger.pods[UID].container("a")
    assert (found.running, found.exit_code, found.finished_at, found.restarts) == (False, 3, NOW + 1, 0)
    ledger.start(UID, "a", command(tmp_path, "import time; time.sleep(600)"), NOW + 2)
    assert ledger.pods[UID].container("a").restarts == 1


def test_a_program_that_is_not_there_is_refused(ledger: Books, tmp_path: Path) -> None:
    ledger.admit(POD, [])
    ledger.start(UID, "a", Command(["/no/such/program"], {}, tmp_path / "log", tmp_path), NOW)
    assert "/no/such/program" in ledger.pods[UID].container("a").refusal


def test_the_next_runtime_adopts_what_runs_and_sees_what_has_ended(ledger: Books, tmp_path: Path) -> None:
    ledger.admit(POD, ["grpc"])
    ledger.start(UID, "a", command(tmp_path, "import time; time.sleep(600)"), NOW)
    process = ledger.pods[UID].container("a").process
    assert process is not None
    heir = Books(tmp_path / "pods.json", tmp_path / "scratch")
    assert heir.pods == ledger.pods
    assert not heir.look(NOW)
    processes.kill_session(process)
    wait_for(lambda: heir.look(NOW + 1))
    found = heir.pods[UID].container("a")
    assert (found.running, found.exit_code) == (False, None)


def test_forgetting_removes_the_folder_and_the_entry(ledger: Books, tmp_path: Path) -> None:
    ledger.admit(POD, [])
    folder = Path(ledger.pods[UID].folder)
    ledger.forget(UID)
    assert not folder.exists()
    assert books.load(tmp_path / "pods.json") == {}
