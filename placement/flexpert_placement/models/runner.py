"""Runs an integer program in a process that is killed when its time is over; every model goes through here.

CBC and HiGHS may overrun the limit they are given by as much again, and PuLP calls what timed out optimal. So the
solver is a process of its own, its own words are read, and it is killed soon after its time.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pulp

from flexpert_placement.types import SolverName

GRACE_S = 0.5
"""How long a solver may go on after its time, to write what it has found."""

POLL_S = 0.02


class Found(StrEnum):
    """What is known of an answer."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    NOTHING = "unknown"


@dataclass(frozen=True)
class Outcome:
    """What a solver found.

    Attributes:
        found: Whether there is an answer, and whether it is known to be the best.
        objective: Of the answer.
        bound: Proven bound of the objective, None where the solver named none.
        values: Variable → value, of the answer.
    """

    found: Found
    objective: float | None = None
    bound: float | None = None
    values: Mapping[str, float] | None = None

    @property
    def is_answer(self) -> bool:
        """Whether there are values."""
        return self.found in (Found.OPTIMAL, Found.FEASIBLE)


def run(
    program: pulp.LpProblem,
    solver: SolverName,
    time_limit_s: float,
    relative_gap: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Minimise a program, on one thread.

    Args:
        program: To be minimised; names without spaces.
        solver: Which one.
        time_limit_s: Wall time; the process is killed `GRACE_S` later.
        relative_gap: Difference from the bound that is good enough, as a fraction.
        stop: Asked every few hundredths of a second; once it says True, the process is killed.
    """
    with tempfile.TemporaryDirectory(prefix="flexpert-program-") as folder:
        model = Path(folder, "model.mps")
        program.writeMPS(str(model))
        answer = Path(folder, "answer")
        begin = _cbc if solver is SolverName.CBC else _highs
        log = Path(folder, "log")
        if not _finished(begin(model, answer, time_limit_s, relative_gap), log, time_limit_s + GRACE_S, stop):
            return Outcome(Found.NOTHING)
        if not answer.exists():
            return Outcome(Found.NOTHING)
        return _read_cbc(answer, log) if solver is SolverName.CBC else _read_highs(answer)


def _cbc(model: Path, answer: Path, time_limit_s: float, relative_gap: float) -> list[str]:
    binary = str(pulp.PULP_CBC_CMD().path)
    limits = ["-sec", f"{time_limit_s:.3f}", "-timeMode", "elapsed", "-ratioGap", f"{relative_gap:g}"]
    return [binary, str(model), *limits, "-branch", "-printingOptions", "all", "-solution", str(answer)]


def _highs(model: Path, answer: Path, time_limit_s: float, relative_gap: float) -> list[str]:
    script = Path(__file__).with_name("highs_process.py")
    return [sys.executable, str(script), str(model), str(answer), f"{time_limit_s:.3f}", f"{relative_gap:g}"]


def _finished(command: list[str], log: Path, limit_s: float, stop: Callable[[], bool]) -> bool:
    """Run a command in a process group of its own; whether it ended well and in time."""
    deadline = time.monotonic() + limit_s
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        while process.poll() is None:
            if stop() or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return False
            time.sleep(POLL_S)
        return process.returncode == 0


def _read_highs(answer: Path) -> Outcome:
    told = json.loads(answer.read_text(encoding="utf-8"))
    return Outcome(Found(told["status"]), told["objective"], told["bound"], told["values"])


def _read_cbc(answer: Path, log: Path) -> Outcome:
    """CBC's first line says how it ended; a line for each variable follows: number, name, value, reduced cost."""
    first, *lines = answer.read_text(encoding="utf-8").splitlines()
    stated = re.search(r"objective value\s+([-+.\deE]+)", first)
    objective = float(stated.group(1)) if stated else None
    if first.startswith("Infeasible") or first.startswith("Integer infeasible"):
        return Outcome(Found.INFEASIBLE)
    fields = [line.replace("**", " ").split() for line in lines]
    values = {row[1]: float(row[2]) for row in fields if len(row) >= 3}
    if first.startswith("Optimal"):
        return Outcome(Found.OPTIMAL, objective, objective, values)
    text = log.read_text(encoding="utf-8", errors="replace")
    lower = re.findall(r"Lower bound:\s+([-+.\deE]+)", text)
    bound = float(lower[-1]) if lower else None
    if "No feasible solution found" in text or not first.startswith("Stopped") or objective is None:
        return Outcome(Found.NOTHING, bound=bound)
    return Outcome(Found.FEASIBLE, objective, bound, values)
