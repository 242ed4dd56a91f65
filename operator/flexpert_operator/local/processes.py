"""Starting, recognising and ending processes that outlive the one that started them.

Used by the runtime for containers and by `flexpert local` for its parts. A process is known by its pid and start
time, so that a recycled pid is never mistaken for it. Each is the leader of a session of its own; whatever it starts
stays in that session (Ray moves its workers to process groups of their own, but not to other sessions), so that
ending the session ends all of it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_START_TOLERANCE_S = 0.05
_POLL_S = 0.05


@dataclass(frozen=True)
class ProcessId:
    """A process for certain.

    Attributes:
        pid: Its number; also its session's.
        started: When it started, in seconds since the Unix epoch.
    """

    pid: int
    started: float


@dataclass(frozen=True)
class Command:
    """What to start.

    Attributes:
        argv: Program and arguments.
        environment: The whole environment.
        log: File that gets stdout and stderr; what was there is lost.
        folder: Working directory.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path


def start(command: Command) -> tuple[ProcessId, subprocess.Popen[bytes]]:
    """Start a process in a session of its own.

    Raises:
        OSError: The program cannot be started.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("wb") as log:
        process = subprocess.Popen(
            list(command.argv),
            env=dict(command.environment),
            cwd=command.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return ProcessId(process.pid, _start_time(process.pid) or time.time()), process


def alive(identity: ProcessId) -> bool:
    """Whether this very process runs; a zombie does not."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started) < _START_TOLERANCE_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def session_members(leader: ProcessId) -> list[int]:
    """Pids of the session that `leader` leads or led, itself included; zombies are not listed."""
    return [pid for pid in psutil.pids() if _belongs(pid, leader)]


def signal_leader(leader: ProcessId, number: signal.Signals) -> None:
    """Send a signal to the leader alone, as a kubelet does to a container's first process; gone is fine."""
    if alive(leader):
        _kill(leader.pid, number)


def kill_session(leader: ProcessId) -> None:
    """SIGKILL everything in the session, as the end of a container's first process ends its whole PID namespace."""
    for pid in session_members(leader):
        _kill(pid, signal.SIGKILL)


def end_sessions(leaders: Iterable[ProcessId], grace_s: float) -> None:
    """SIGTERM every leader, wait at most `grace_s` for them, SIGKILL what is left of their sessions, see it end."""
    remaining = list(leaders)
    for leader in remaining:
        signal_leader(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(alive(leader) for leader in remaining):
        time.sleep(_POLL_S)
    for leader in remaining:
        while session_members(leader):
            kill_session(leader)
            time.sleep(_POLL_S)


def tail(log: Path, num_lines: int = 15) -> str:
    """Last lines of a log, for an error message; empty when there is none."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def _start_time(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _belongs(pid: int, leader: ProcessId) -> bool:
    try:
        if os.getsid(pid) != leader.pid:
            return False
        process = psutil.Process(pid)
        return process.create_time() >= leader.started - _START_TOLERANCE_S and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
