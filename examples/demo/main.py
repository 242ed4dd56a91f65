"""The main job, start to end: apply a MoEDeployment, stream text, and change the pool under load without a failure.

`make demo` runs it. It prints a table and writes `build/demo/report.json` and `build/demo/timeline.png`; it exits
with 1 when a request failed, a text differed or an engine held expert weights.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import timeline
from balance import Balance, Look
from cluster import DemoError, Laptop
from load import SteadyLoad
from records import WINDOW_S, Event, report, tokens_per_s, tpot_ms_p99

from flexpert_proto import pool_pb2 as pb
from flexpert_proto.client import AsyncGenerationClient

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "demo"
CHECKPOINT = ROOT / "examples" / "models" / "tiny-moe"
MANIFEST = ROOT / "examples" / "tiny-moe.yaml"
NAME = "tiny-moe"
CODE = (
    "def ",
    "import os\n",
    "class ",
    "    def __init__(self, ",
    "for i in range(",
    "try:\n    ",
    "if not isinstance(",
    '"""Return ',
)
PROSE = (
    "The old man walked slowly along the river and said that ",
    "She opened the window, and the smell of rain ",
    "It was a cold night; nobody in the village ",
    "When the train arrived, my brother and I ",
    "Once upon a time, in a country far away, there lived ",
    "The captain looked at the sea for a long time, then ",
    "My grandmother used to tell us that ",
    "They sat by the fire and spoke of ",
)
"""The model has only ever read Python; prose takes other experts, which is what this is about."""

MAX_TOKENS = 48
STREAMS = 4
READY_TIMEOUT_S = 400.0
CHANGE_TIMEOUT_S = 400.0


class Demo:
    """The state of one run."""

    def __init__(self) -> None:
        self.laptop = Laptop(ROOT, NAME)
        self.events: list[Event] = []
        self.workers: list[tuple[float, int]] = []
        self.balance = Balance()
        self.phase = "starting"
        self.load: SteadyLoad | None = None
        self.engine_expert_bytes = 0
        self.started = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """Everything, in order; the cluster is taken down whatever happens."""
        computing = asyncio.create_task(reference_texts())
        try:
            await self.laptop.up()
            say("laptop cluster is up")
            ready_s = await self.apply()
            await self.stream_one(CODE[0])
            await self.under_load()
            references = await computing
            say(f"reference: {len(references)} greedy texts by transformers' generate, in one process")
        finally:
            computing.cancel()
            self.phase = "going down"
            await self.laptop.down()
        assert self.load is not None
        return report(self.load.requests, references, self.events, self.engine_expert_bytes, ready_s)

    async def apply(self) -> float:
        """Apply the manifest; returns the seconds until the pool is Ready."""
        started = time.monotonic()
        await self.laptop.apply(MANIFEST)
        say(f"applied {MANIFEST.relative_to(ROOT)}; waiting for Ready")
        await self.laptop.wait_ready(READY_TIMEOUT_S)
        ready_s = time.monotonic() - started
        say(f"Ready after {ready_s:.1f} s")
        return ready_s

    async def stream_one(self, prompt: str) -> None:
        """Stream one completion to the terminal."""
        say(f"streaming a completion of {prompt!r}:\n")
        print(prompt, end="", flush=True)
        async with AsyncGenerationClient(self.laptop.ingress) as client:
            async for piece in client.generate_stream(prompt, max_tokens=64, temperature=0):
                print(piece.text, end="", flush=True)
        print("\n")

    async def under_load(self) -> None:
        """Steady load, the events, and the watchers beside them."""
        self.load = SteadyLoad(self.laptop.ingress, CODE, MAX_TOKENS, STREAMS)
        self.load.start()
        watchers = [asyncio.create_task(self.watch_pool()), asyncio.create_task(self.show_progress())]
        try:
            self.phase = "steady"
            await asyncio.sleep(WINDOW_S + 1)
            await self.event("scale-up", 2, 4, lambda: self.laptop.scale(4), scaled_to(4))
            await self.text_change()
            await self.event("scale-down", 4, 2, lambda: self.laptop.scale(2), scaled_to(2))
            await self.event("worker-kill", 2, 2, self.kill_worker, scaled_to(2))
            await self.event("engine-kill", 1, 1, self.kill_engine, engines_ready(1))
        finally:
            for watcher in watchers:
                watcher.cancel()
            await self.load.stop()

    async def event(
        self,
        name: str,
        before: int,
        after: int,
        act: Callable[[], Awaitable[object]],
        done: Callable[[pb.Pool, pb.Pool], bool],
    ) -> None:
        """Act, wait until the pool is as it should be, and record how long it took."""
        self.phase = name
        old = await self.laptop.pool()
        start = time.monotonic()
        await act()
        while True:
            await asyncio.sleep(0.1)
            new = await self.laptop.pool()
            if done(old, new):
                break
            if time.monotonic() - start > CHANGE_TIMEOUT_S:
                raise DemoError(f"{name} took more than {CHANGE_TIMEOUT_S:.0f} s; the pool is:\n{new}")
        moved = new.operation.moved_bytes if new.operation.id != old.operation.id else 0
        end = time.monotonic()
        self.phase = "steady"
        await asyncio.sleep(WINDOW_S + 1)
        spread = (self.balance.between(start - WINDOW_S, start), self.balance.between(end, end + WINDOW_S))
        self.events.append(Event(name, before, after, start, end, moved, spread))

    async def text_change(self) -> None:
        """Ask for other texts, until the operator has moved experts and the workers are evenly busy again.

        That takes more than one round where the loads that it knew at the first one were half of the old text. The
        imbalance before is the highest that was measured just before a round, the one after that of the last.
        """
        assert self.load is not None
        self.phase = "text-change"
        old = await self.laptop.pool()
        workers, start, moved, before, after = len(old.workers), time.monotonic(), 0, 1.0, None
        self.load.change(PROSE)
        while (new := await self.next_rebalance(old, may_end=after is not None)) is not None:
            end, old = time.monotonic(), new
            moved += new.operation.moved_bytes
            before = max(before, self.balance.between(end - WINDOW_S, end) or 1.0)
            await asyncio.sleep(WINDOW_S + 1)
            after = self.balance.between(end, end + WINDOW_S)
            if after is not None and after - 1 <= (before - 1) / 2:
                break
        self.events.append(Event("text-change", workers, workers, start, end, moved, (before, after)))
        self.phase = "steady"

    async def next_rebalance(self, old: pb.Pool, may_end: bool) -> pb.Pool | None:
        """The pool once a rebalancing has ended that is not in `old`; None when it `may_end` and the operator is done.

        Raises:
            DemoError: There was none; the message has the operator's reason.
        """
        start = time.monotonic()
        while time.monotonic() - start < CHANGE_TIMEOUT_S:
            new = await self.laptop.pool()
            last = new.operation
            if last.cause == pb.REBALANCE and last.phase == pb.SUCCEEDED and last.id != old.operation.id:
                return new
            if may_end and not await self.laptop.holds("Rebalancing"):
                return None
            await asyncio.sleep(0.1)
        decision = (await self.laptop.status()).get("placement", {}).get("lastDecision")
        raise DemoError(f"no rebalancing within {CHANGE_TIMEOUT_S:.0f} s; the operator's last decision is {decision}")

    async def kill_worker(self) -> None:
        """SIGKILL an expert worker."""
        workers = (await self.laptop.pool()).workers
        os.kill(pid_of(worker.pid for worker in workers if worker.state == pb.Worker.READY), signal.SIGKILL)

    async def kill_engine(self) -> None:
        """SIGKILL the engine."""
        pool = await self.laptop.pool()
        self.engine_expert_bytes = max(engine.expert_bytes for engine in pool.engines)
        os.kill(pid_of(engine.pid for engine in pool.engines if engine.state == pb.Engine.READY), signal.SIGKILL)

    async def watch_pool(self) -> None:
        """Sample how many workers hold experts."""
        while True:
            pool = await self.laptop.pool()
            self.workers.append((time.monotonic(), sum(bool(worker.experts) for worker in pool.workers)))
            self.balance.looks.append(look_at(pool, time.monotonic()))
            await asyncio.sleep(0.25)

    async def show_progress(self) -> None:
        """One line that is rewritten on a terminal; a line every few seconds elsewhere."""
        live = sys.stdout.isatty()
        while True:
            await asyncio.sleep(0.5 if live else 5.0)
            print(("\r\033[K" if live else "") + self.progress(), end="" if live else "\n", flush=True)

    def progress(self) -> str:
        """How it goes, in a line."""
        assert self.load is not None
        now, requests = time.monotonic(), self.load.requests
        ended = [request for request in requests if request.finished is not None]
        failed = sum(request.error is not None for request in ended)
        holding = self.workers[-1][1] if self.workers else 0
        return (
            f"[{now - self.started:5.1f} s] {self.phase:12} workers {holding}  "
            f"{tokens_per_s(requests, now - 2, now):6.1f} tokens/s  "
            f"p99 {tpot_ms_p99(requests, now - 2, now):6.1f} ms/token  "
            f"requests {len(ended)} ended, {failed} failed"
        )


def look_at(pool: pb.Pool, now: float) -> Look:
    """What a pool says of tokens and placement."""
    tokens = {divmod(position, pool.model.experts): count for position, count in enumerate(pool.loads)}
    placement: dict[tuple[int, int], dict[str, float]] = {}
    for replica in pool.placement:
        row = placement.setdefault((replica.expert.layer, replica.expert.index), {})
        row[replica.worker] = replica.share
    return Look(now, tokens, placement)


def pid_of(pids: Iterable[int]) -> int:
    """The first process that can be killed (0 would be our own process group)."""
    for pid in pids:
        if pid > 0:
            return pid
    raise DemoError("no ready process to kill: the pool has not settled")


def scaled_to(count: int) -> Callable[[pb.Pool, pb.Pool], bool]:
    """Whether exactly `count` workers are there, all hold experts, and a newer table than before is in force."""

    def done(old: pb.Pool, new: pb.Pool) -> bool:
        present = [worker for worker in new.workers if worker.state != pb.Worker.LOST]
        ready = [worker for worker in present if worker.state == pb.Worker.READY]
        epoch = (new.epoch.term, new.epoch.sequence)
        return (
            len(present) == len(ready) == count
            and {worker.id for worker in ready} != {worker.id for worker in old.workers}
            and all(worker.experts for worker in ready)
            and epoch > (old.epoch.term, old.epoch.sequence)
            and not new.lost
            and new.operation.finished_at > 0
        )

    return done


def engines_ready(count: int) -> Callable[[pb.Pool, pb.Pool], bool]:
    """Whether `count` engines are ready of which at least one is new."""

    def done(old: pb.Pool, new: pb.Pool) -> bool:
        ready = {engine.id for engine in new.engines if engine.state == pb.Engine.READY}
        return len(ready) == count and bool(ready - {engine.id for engine in old.engines})

    return done


async def reference_texts() -> dict[str, str]:
    """Prompt → greedy text, from a process of its own that takes only the time that the cluster leaves."""
    process = await asyncio.create_subprocess_exec(
        *(
            "nice",
            "-n",
            "19",
            sys.executable,
            str(Path(__file__).with_name("reference.py")),
            str(CHECKPOINT),
            str(MAX_TOKENS),
            *CODE,
            *PROSE,
        ),
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise DemoError("the reference could not be computed; see above")
    texts: dict[str, str] = json.loads(output)
    return texts


def say(message: str) -> None:
    """Print a step."""
    print(f"==> {message}", flush=True)


def print_table(result: dict[str, Any]) -> None:
    """The report as a table."""
    columns = ("event", "workers", "seconds", "moved KiB", "failed", "imbalance", "tokens/s", "time per token p99, ms")
    print("\n{:12} {:>8} {:>8} {:>10} {:>7} {:>13} {:>22} {:>26}".format(*columns))
    for event in result["events"]:
        rates = " / ".join(f"{event['tokens_per_s'][span]:.0f}" for span in ("before", "during", "after"))
        spread = " / ".join(f"{value:.2f}" if value else "-" for value in event["imbalance"].values())
        latencies = " / ".join(f"{event['tpot_ms_p99'][span]:.0f}" for span in ("before", "during", "after"))
        print(
            f"{event['name']:12} {event['from']:>3} → {event['to']:<2} {event['duration_s']:>8.1f} "
            f"{event['moved_bytes'] / 1024:>10.0f} {event['failed']:>7} {spread:>13} {rates:>22} {latencies:>26}"
        )
    requests = result["requests"]
    print(
        f"\n{requests['total']} requests, {requests['failed']} failed; every greedy text equals the reference: "
        f"{'yes' if requests['text_identical'] else 'NO'}; "
        f"expert bytes in the engine: {result['engine_expert_bytes']}; ready after {result['ready_s']} s"
    )
    for error in result["errors"]:
        print(f"failed: {error}")


def main() -> int:
    """Run the demo; 0 when nothing failed."""
    demo = Demo()
    try:
        result = asyncio.run(demo.run())
    except DemoError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    assert demo.load is not None
    timeline.draw(OUTPUT / "timeline.png", demo.load.requests, demo.events, demo.workers, demo.balance)
    print_table(result)
    print(f"written: {OUTPUT.relative_to(ROOT)}/report.json, {OUTPUT.relative_to(ROOT)}/timeline.png")
    good = result["requests"]["failed"] == 0 and result["requests"]["text_identical"]
    return 0 if good and result["engine_expert_bytes"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
