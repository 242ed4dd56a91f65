"""`make bench-elastic`: a pool under load grows from 2 to 3 workers and shrinks again, against a cold restart.

Variants: `elastic` (a worker stands by, and attaches to the pages of its host's owner), ElasticMoE's ablations
`no_attach` (its owner copies from the others' owner), `no_peer_copy` (its owner reads the file), `no_standby` (its
process starts at growth), and `cold_restart` (everything ends and starts anew with 3). Each repeat runs all of them,
one after another, on the same pool; ratios are taken within a repeat. Writes `build/bench/elastic.json`.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import OUTPUT, Aim, aim_of, write_report
from elastic_model import EXPERT_BYTES, NUM_LAYERS
from elastic_pool import SHARED_POD, Change, Pool, ingress_process, now
from elastic_watch import (
    MemoryWatch,
    Span,
    Window,
    downtime_s,
    proportional_bytes,
    token_seconds,
    tokens_per_s,
)

from flexpert_proto import names
from flexpert_workers import threads
from flexpert_workers.pool.state import Slot

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "grpcio", "pyzmq")
SMALL, LARGE, STREAMS = 2, 3, 4
QUIET_S = 3.0
"""How long rates are measured before and after a change."""
STALL_S = 0.5
"""A stream that waits longer for a token is down; a token takes a few hundredths of that."""
SAMPLE_S = 0.1
SPARE_MEMORY = 1.3
MIB = 1 << 20
PROCESSES_BYTES = 4 << 30


@dataclass(frozen=True)
class Variant:
    """A way to grow, with ElasticMoE's switches."""

    name: str
    attach: bool = True
    peers: bool = True
    standby: bool = True
    cold: bool = False


VARIANTS = (
    Variant("elastic"),
    Variant("no_attach", attach=False),
    Variant("no_peer_copy", attach=False, peers=False),
    Variant("no_standby", standby=False),
    Variant("cold_restart", cold=True),
)


class LoadProcess:
    """`elastic_load` as a process."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        command = [sys.executable, str(HERE / "elastic_load.py"), "--address", address, "--streams", str(STREAMS)]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self._process.kill)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def report(self) -> tuple[list[Span], list[str], int]:
        """Spans, failures and number of completed requests since the last call."""
        answer = await asyncio.to_thread(self._ask)
        return [Span(*span) for span in answer["spans"]], answer["failures"], answer["completed"]

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


class Bench:
    """The pool, its load and its watch."""

    def __init__(self, pool: Pool, load: LoadProcess) -> None:
        self._pool = pool
        self._load = load
        self._watch = MemoryWatch(frozenset({load.pid}), SAMPLE_S)
        self._runs = 0

    def close(self) -> None:
        """Stop watching."""
        self._watch.stop()

    async def settle(self) -> None:
        """Wait until every stream has got tokens."""
        seen: set[int] = set()
        while len(seen) < STREAMS:
            spans, _, _ = await self._load.report()
            seen |= {span.stream for span in spans}
            await asyncio.sleep(0.1)

    async def run(self, variant: Variant, repeat: int) -> dict[str, Any]:
        """Grow as the variant says, and shrink again; a row of the report."""
        self._runs += 1
        slot = Slot(f"new-{self._runs}", SHARED_POD if variant.attach else f"own-{self._runs}")
        if variant.standby and not variant.cold:
            await self._pool.add_standby(slot.id, slot.pod)
        await self.settle()
        began = now()
        await asyncio.sleep(QUIET_S)
        self._watch.take_peak()
        if variant.cold:
            grown, victim = await self._pool.cold_restart(LARGE), f"slot-{LARGE - 1}"
        else:
            grown = await self._pool.grow(LARGE, None if variant.standby else slot, variant.peers)
            victim = slot.id
        peak = self._watch.take_peak()
        spans, failures, completed = await self._load.report()
        if variant.cold:
            spans, failures, completed = await self._revived(spans, failures, completed)
        after = now()
        await asyncio.sleep(QUIET_S)
        pss = proportional_bytes(self._watch.processes())
        shrinking = now()
        shrunk = await self._pool.shrink(victim)
        await asyncio.sleep(STALL_S)
        more = await self._load.report()
        row = {
            "variant": variant.name,
            "repeat": repeat,
            **growth(grown, Window(began, grown.begun), Window(after, shrinking), [*spans, *more[0]]),
            **shrinking_of(shrunk, Window(after, shrinking), more[0]),
            "peak_bytes": peak,
            "pss_after_bytes": pss,
            "failed_requests": len(failures) + len(more[1]),
            "failures": [*failures, *more[1]][:5],
            "completed_requests": completed + more[2],
        }
        row["during_vs_before"] = during_vs_before(row)
        return row

    async def _revived(
        self, spans: list[Span], failures: list[str], completed: int
    ) -> tuple[list[Span], list[str], int]:
        """What came, once every stream has got tokens after a restart."""
        restarted, revived = now(), set[int]()
        while len(revived) < STREAMS:
            await asyncio.sleep(0.1)
            more = await self._load.report()
            spans, failures, completed = spans + more[0], failures + more[1], completed + more[2]
            revived |= {span.stream for span in more[0] if span.end > restarted}
        return spans, failures, completed


def growth(grown: Change, before: Window, after: Window, spans: Sequence[Span]) -> dict[str, Any]:
    """What was seen of growing."""
    during = Window(grown.begun, grown.finished)
    waits = token_seconds(spans, during)
    operation = grown.operation
    return {
        "to_epoch_s": grown.in_force - grown.begun,
        "to_end_s": during.seconds,
        "solve_s": grown.solve_s,
        "phase_seconds": dict(operation.phase_seconds),
        "step_seconds": dict(operation.step_seconds),
        "moved_experts": operation.moved_experts,
        "attached_experts": operation.attached_experts,
        "moved_bytes": operation.moved_bytes,
        "downtime_s": downtime_s(spans, during, STALL_S),
        "longest_token_s": max(waits, default=0.0),
        "p99_token_s": quantile_99(waits),
        "p99_token_before_s": quantile_99(token_seconds(spans, before)),
        "tokens_per_s_before": tokens_per_s(spans, before),
        "tokens_per_s_during": tokens_per_s(spans, during),
        "tokens_per_s_after": tokens_per_s(spans, after),
    }


def shrinking_of(shrunk: Change, before: Window, spans: Sequence[Span]) -> dict[str, Any]:
    """What was seen of shrinking."""
    during = Window(shrunk.begun, shrunk.finished)
    return {
        "shrink_to_epoch_s": shrunk.in_force - shrunk.begun,
        "shrink_to_end_s": during.seconds,
        "shrink_downtime_s": downtime_s(spans, during, STALL_S),
        "shrink_tokens_per_s_before": tokens_per_s(spans, before),
        "shrink_tokens_per_s_during": tokens_per_s(spans, during),
    }


def during_vs_before(row: dict[str, Any]) -> float:
    """Tokens given during both changes over those that the rates just before each would have given."""
    grow_s, shrink_s = row["to_end_s"], row["shrink_to_end_s"]
    given = row["tokens_per_s_during"] * grow_s + row["shrink_tokens_per_s_during"] * shrink_s
    usual = row["tokens_per_s_before"] * grow_s + row["shrink_tokens_per_s_before"] * shrink_s
    return float(given / usual)


def quantile_99(values: Sequence[float]) -> float:
    """The 99th percentile; 0 of nothing."""
    return statistics.quantiles(values, n=100, method="inclusive")[-1] if len(values) > 1 else sum(values)


def values(rows: Sequence[dict[str, Any]], variant: str, field: str) -> list[float]:
    """A field of a variant's rows, by repeat."""
    return [row[field] for row in rows if row["variant"] == variant]


def aims_of(rows: Sequence[dict[str, Any]]) -> list[Aim]:
    """The figures that the project aims at, and the speed-ups of the ablations."""

    def against_cold(variant: str, field: str) -> list[float]:
        """Cold restart's over the variant's."""
        pairs = zip(values(rows, "cold_restart", field), values(rows, variant, field), strict=True)
        return [cold / own for cold, own in pairs]

    both = zip(values(rows, "elastic", "downtime_s"), values(rows, "elastic", "shrink_downtime_s"), strict=True)
    peaks = [1 / ratio for ratio in against_cold("elastic", "peak_bytes")]
    return [
        aim_of("scale_up_vs_cold_restart", against_cold("elastic", "to_epoch_s"), 10.0, "higher", "ratio"),
        aim_of("request_downtime_s", [grow + shrink for grow, shrink in both], 0.0, "lower", "s"),
        aim_of("throughput_during_vs_before", values(rows, "elastic", "during_vs_before"), 0.9, "higher", "ratio"),
        aim_of("peak_bytes_vs_cold_restart", peaks, 1.05, "lower", "ratio"),
        aim_of("failed_requests", values(rows, "elastic", "failed_requests"), 0.0, "lower", "count"),
    ]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Medians by variant."""
    columns = {
        "to epoch s": ("to_epoch_s", 1.0),
        "down s": ("downtime_s", 1.0),
        "peak MiB": ("peak_bytes", 1 / MIB),
        "tok/s before": ("tokens_per_s_before", 1.0),
        "during": ("tokens_per_s_during", 1.0),
        "after": ("tokens_per_s_after", 1.0),
        "p99 ms": ("p99_token_s", 1000.0),
        "failed": ("failed_requests", 1.0),
        "shrink s": ("shrink_to_epoch_s", 1.0),
    }
    print(f"\n{'medians, 2 to 3 workers':24}" + "".join(f"{title:>14}" for title in columns))
    for variant in VARIANTS:
        medians = (statistics.median(values(rows, variant.name, field)) * by for field, by in columns.values())
        print(f"{variant.name:24}" + "".join(f"{value:14.2f}" for value in medians))
    print()


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Seconds to the new epoch and tokens/s during, by variant, every repeat a dot: `build/bench/elastic.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    OUTPUT.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
    for position, variant in enumerate(VARIANTS):
        seconds = values(rows, variant.name, "to_epoch_s")
        left.plot(seconds, [position] * len(seconds), "o", color="tab:blue", alpha=0.7)
        shares = values(rows, variant.name, "during_vs_before")
        right.plot(shares, [position] * len(shares), "o", color="tab:orange", alpha=0.7)
    left.set(xscale="log", xlabel="s from the command to the new epoch")
    right.set(xlabel="tokens/s during the changes / before them")
    for axes in (left, right):
        axes.set_yticks(range(len(VARIANTS)), [variant.name for variant in VARIANTS])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(OUTPUT / "elastic.png", dpi=120)
    pyplot.close(figure)


def scratch_parent(needed_bytes: int) -> str | None:
    """Where the checkpoint goes: RAM where there is room, so that no disk takes part; else the usual folder."""
    shared = Path("/dev/shm")
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    roomy = available > 2 * needed_bytes + PROCESSES_BYTES  # the checkpoint and its pages
    return str(shared) if roomy and shared.is_dir() and shutil.disk_usage(shared).free > needed_bytes * 1.1 else None


async def measure(checkpoint: Path, expert_bytes: int, repeats: int) -> list[dict[str, Any]]:
    """One row a variant and repeat, interleaved; the first row is of starting the pool."""
    with ExitStack() as stack:
        pool = Pool(f"file://{checkpoint}", int(expert_bytes / SMALL * SPARE_MEMORY), stack)
        try:
            _, address = ingress_process(pool.port, stack)
            load = LoadProcess(address, stack)
            bench = Bench(pool, load)
            stack.callback(bench.close)
            warmup = await pool.start(SMALL)
            await bench.settle()
            rows: list[dict[str, Any]] = [
                {"variant": "warmup", "warmup": True, "to_epoch_s": warmup.in_force - warmup.begun}
            ]
            for repeat in range(repeats):
                for variant in VARIANTS:
                    rows.append(await bench.run(variant, repeat))
                    row = rows[-1]
                    print(
                        f"repeat {repeat} {variant.name:14} {row['to_epoch_s']:7.2f} s to the epoch, "
                        f"{row['tokens_per_s_before']:6.1f} then {row['tokens_per_s_during']:6.1f} tokens/s, "
                        f"down {row['downtime_s']:5.2f} s, {row['peak_bytes'] / MIB:6.0f} MiB",
                        flush=True,
                    )
            return rows
        finally:
            await pool.stop()


def main() -> None:
    """Write the checkpoint, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--experts", type=int, default=126, help="experts of each of the model's layers")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # what was started is ended then
    os.environ.update(threads.environment(1))
    expert_bytes = NUM_LAYERS * options.experts * EXPERT_BYTES
    with tempfile.TemporaryDirectory(prefix="fx-bench", dir=scratch_parent(expert_bytes)) as scratch:
        os.environ[names.ENV_CHECKPOINT_CACHE] = str(Path(scratch) / "cache")
        checkpoint = Path(scratch) / "model"
        command = [sys.executable, str(HERE / "elastic_model.py"), str(checkpoint), "--experts", str(options.experts)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = asyncio.run(measure(checkpoint, expert_bytes, options.repeats))
    settings = {"expert_bytes": expert_bytes, "page_bytes": EXPERT_BYTES, "streams": STREAMS, "threads_per_process": 1}
    measured = [row for row in rows if not row.get("warmup")]
    print_table(measured)
    draw(measured)
    write_report("elastic", aims_of(measured), [settings, *rows], "cpu", PACKAGES)


if __name__ == "__main__":
    main()
