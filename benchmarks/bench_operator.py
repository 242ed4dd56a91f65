"""`make bench-operator`: what the operator costs with 10, 100 and 1,000 MoEDeployments, beside a minimal kopf operator.

Writes `build/bench/operator.json`. The API is the embedded one, in a process of its own, which counts requests; there
is no KubeRay and no pool controller, so objects stay where a cluster without room would leave them.
"""

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Aim, aim_of, write_report
from operator_load import Load, percentile

from flexpert_operator.kube import Kube, api_client
from flexpert_operator.local.kubeapi import write_kubeconfig
from flexpert_operator.local.up import install_crds

HERE = Path(__file__).parent
PACKAGES = ("kopf", "kubernetes", "aiohttp", "grpcio")
SIZES = (10, 100, 1000)
OURS, PEER = "flexpert", "kopf"
START_S = 600.0
RESYNC_S = 30.0
SMALL_REPEATS = 2
WARM_UP_S = 5.0
SETUP = {
    "api": "embedded, in a process of its own, on the same cores",
    "pool_controllers": "absent",
    "pods": "absent: nobody plays KubeRay",
    "leader_election": "on",
}


@dataclass
class Process:
    """A running process and what the kernel says of it."""

    popen: "subprocess.Popen[bytes]"

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self, which: str) -> float:
        """VmRSS: resident now; VmHWM: the most that ever was."""
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024


@contextlib.contextmanager
def running(arguments: Sequence[str], log: Path) -> Iterator[Process]:
    """A Python process, until the end of the context."""
    with log.open("ab") as file:
        popen = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT)
    try:
        yield Process(popen)
    finally:
        popen.terminate()
        try:
            popen.wait(30)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


@contextlib.contextmanager
def an_api(folder: Path) -> Iterator[Load]:
    """An empty API with our kinds, and who puts load on it."""
    ready, token = folder / "ready", secrets.token_urlsafe(16)
    ready.unlink(missing_ok=True)
    with running([str(HERE / "operator_api.py"), token, str(ready)], folder / "api.log"):
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if time.monotonic() > deadline:
                raise SystemExit("the API did not start")
            time.sleep(0.05)
        kubeconfig = write_kubeconfig(folder / "kubeconfig", ready.read_text(), token)
        install_crds(Kube(api_client(kubeconfig)))
        yield Load(kubeconfig)


def command(who: str, kubeconfig: Path, *options: str) -> list[str]:
    """How to start one of the two."""
    if who == PEER:
        return [str(HERE / "operator_kopf.py"), str(kubeconfig)]
    election = ["--leader-elect", "--lease-namespace", "default", "--lease-name", secrets.token_hex(4)]
    return ["-m", "flexpert_operator", "--kubeconfig", str(kubeconfig), "--metrics", "", *election, *options]


def apply_and_churn(who: str, load: Load, number: int, folder: Path, idle_s: float) -> dict[str, Any]:
    """An operator on an empty API, `number` objects applied, left alone, and all of them changed."""
    with running(command(who, load.kubeconfig), folder / f"{who}.log") as process:
        load.warm_up(START_S, has_children=who == OURS)
        applied = load.apply(number, has_children=who == OURS, timeout_s=START_S)
        time.sleep(WARM_UP_S)
        idle = watch_idle(load, process, idle_s)
        busy, began = process.cpu_s, time.monotonic()
        seconds = load.churn(number, START_S)
        took = time.monotonic() - began
        return {
            "what": "apply, idle, churn",
            "operator": who,
            "objects": number,
            "apply_p50_s": percentile(applied, 50),
            "apply_p99_s": percentile(applied, 99),
            "applied_until": "all children exist" if who == OURS else "the status is written",
            "events_per_s": number / seconds,
            "churn_cpu_cores": (process.cpu_s - busy) / took,
            "churn_memory_mib": process.memory_mib("VmRSS"),
            "peak_memory_mib": process.memory_mib("VmHWM"),
            **idle,
        }


def watch_idle(load: Load, process: Process, seconds: float) -> dict[str, float]:
    """What an operator does while nothing changes."""
    before, cpu, began = load.requests(), process.cpu_s, time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    asked = load.requests() - before
    return {
        "idle_cpu_cores": (process.cpu_s - cpu) / took,
        "idle_memory_mib": process.memory_mib("VmRSS"),
        "idle_requests_per_s": asked / took,
    }


def cold_start(who: str, load: Load, number: int, folder: Path, idle_s: float) -> dict[str, Any]:
    """An operator starts on `number` objects that exist, sees all of them, and is left alone."""
    before, began = load.requests(), time.monotonic()
    with running(command(who, load.kubeconfig), folder / f"{who}.log") as process:
        load.until_quiet(process, before, START_S)
        took = time.monotonic() - began
        asked = load.requests() - before
        cpu = process.cpu_s
        idle = watch_idle(load, process, idle_s)
        peak = process.memory_mib("VmHWM")
    return {
        "what": "cold start, idle",
        "operator": who,
        "objects": number,
        "start_s": took,
        "start_cpu_s": cpu,
        "start_requests": asked,
        "peak_memory_mib": peak,
        **idle,
    }


def forced(load: Load, number: int, folder: Path) -> dict[str, Any]:
    """Our operator reconciles every object every few seconds though nothing changes."""
    port, before = load.free_port(), load.requests()
    options = ("--resync-seconds", str(RESYNC_S))
    arguments = [*command(OURS, load.kubeconfig, *options), "--metrics", f"127.0.0.1:{port}"]
    with running(arguments, folder / "forced.log") as process:
        load.until_quiet(process, before, START_S)
        requests, reconciled, cpu = load.requests(), load.reconciled(port), process.cpu_s
        time.sleep(RESYNC_S)
        reconciliations = load.reconciled(port) - reconciled
        return {
            "what": "idle reconciliations",
            "operator": OURS,
            "objects": number,
            "reconciliations": reconciliations,
            "requests": load.requests() - requests,
            "requests_per_reconcile": (load.requests() - requests) / reconciliations,
            "cpu_ms_per_reconcile": 1000 * (process.cpu_s - cpu) / reconciliations,
        }


def measure(folder: Path, sizes: Sequence[int], repeats: int, idle_s: float) -> Iterator[dict[str, Any]]:
    """All rows; what is compared is measured in turn."""
    for number in sizes[:-1]:
        for repeat in range(SMALL_REPEATS):
            for who in (OURS, PEER):
                with an_api(folder) as load:
                    yield {"repeat": repeat, **apply_and_churn(who, load, number, folder, idle_s)}
    most = sizes[-1]
    with an_api(folder) as load:
        yield {"repeat": 0, **apply_and_churn(PEER, load, most, folder, idle_s)}
    with an_api(folder) as load:
        yield {"repeat": 0, **apply_and_churn(OURS, load, most, folder, idle_s)}
        for repeat in range(repeats):
            for who in (OURS, PEER):
                yield {"repeat": repeat, **cold_start(who, load, most, folder, idle_s)}
            yield {"repeat": repeat, **forced(load, most, folder)}


def aims_of(rows: Sequence[dict[str, Any]], most: int) -> list[Aim]:
    """The aims."""

    def of(what: str, key: str, who: str = OURS) -> list[float]:
        return [row[key] for row in rows if (row["what"], row["operator"], row["objects"]) == (what, who, most)]

    cold = "cold start, idle"
    memory, others = of(cold, "peak_memory_mib"), of(cold, "peak_memory_mib", PEER)
    ratio = [ours / peer for ours, peer in zip(memory, others, strict=True)]
    requests = of("idle reconciliations", "requests_per_reconcile")
    return [
        aim_of("memory_mib_at_1000", memory, 250.0, "lower", "MiB"),
        aim_of("idle_cpu_cores_at_1000", of(cold, "idle_cpu_cores"), 0.05, "lower", "cores"),
        aim_of("requests_per_idle_reconcile", requests, 0.0, "lower", "calls"),
        aim_of("memory_vs_kopf_at_1000", ratio, 1.0, "lower", "ratio"),
    ]


def main() -> None:
    """Measure and write the report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--idle-seconds", type=float, default=10.0)
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = [{"what": "set-up", "operator": "", "objects": 0, **SETUP}]
    with tempfile.TemporaryDirectory(prefix="flexpert-bench-") as name:
        for row in measure(Path(name), chosen.sizes, chosen.repeats, chosen.idle_seconds):
            rows.append(row)
            shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
            print(*(f"{key}={value}" for key, value in shown.items()), flush=True)
    write_report("operator", aims_of(rows, chosen.sizes[-1]), rows, "cpu", PACKAGES)


if __name__ == "__main__":
    main()
