"""Flexpert's engine in this process and expert workers in processes of their own, for `bench_engine`.

Told by lines of JSON on stdin as `engine_peers` is; the answer also holds the dispatch times of the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from flexpert_placement import ExpertId, PlacementProblem, WorkerCapacity, solve
from flexpert_workers import threads
from flexpert_workers.checkpoint import Checkpoint, open_checkpoint
from flexpert_workers.dispatch import DispatchClient, TableHolder
from flexpert_workers.engine import Engine, EngineConfig
from flexpert_workers.expert import WorkerConfig
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages import control
from flexpert_workers.messages.generation import Rejected, Sampling, Submit, TokenOutput
from flexpert_workers.routing import Epoch, Replica, RoutingTable, WorkerAddress

POOL = "bench"
MEMORY_BYTES = 1 << 30
PREPARE_TIMEOUT_S = 60.0
POLL_US = 10_000
"""As in a cluster, where a process's cores are its own; with more processes than cores nobody polls."""


@contextmanager
def worker_process(
    name: str, source: str, num_threads: int, socket_dir: str, poll_us: int = 0
) -> Iterator[WorkerAddress]:
    """One expert worker as a process, for as long as the context lasts."""
    config = WorkerConfig(
        worker=name,
        pool=POOL,
        source=source,
        dtype="Auto",
        memory_bytes=MEMORY_BYTES,
        threads=num_threads,
        bind_host="127.0.0.1",
        pod=name,
        node="",
        socket_dir=socket_dir,
        poll_us=poll_us,
    )
    command = [sys.executable, "-m", "flexpert_workers.expert", "--config", msgspec.json.encode(config).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            yield WorkerAddress(name, ready["incarnation"], ready["endpoint"], ready["control_endpoint"])
        finally:
            process.terminate()


def place(checkpoint: Checkpoint, addresses: tuple[WorkerAddress, ...]) -> RoutingTable:
    """Spread the experts evenly and make them resident."""
    workers = tuple(WorkerCapacity(address.worker, MEMORY_BYTES) for address in addresses)
    even = ((1.0,) * checkpoint.num_experts,) * checkpoint.num_layers
    placement = solve(PlacementProblem(even, checkpoint.layout.page_bytes, workers, max_replicas=1)).placement
    position = {address.worker: index for index, address in enumerate(addresses)}
    for address in addresses:
        mine = tuple((e.layer, e.index, ()) for e, shares in sorted(placement.items()) if address.worker in shares)
        make_resident(address, mine)
    return RoutingTable(
        pool=POOL,
        digest=checkpoint.digest,
        epoch=Epoch(1, 1),
        operation="bench",
        workers=addresses,
        replicas=tuple(
            tuple(
                tuple(Replica(position[worker], share) for worker, share in placement[ExpertId(layer, index)].items())
                for index in range(checkpoint.num_experts)
            )
            for layer in range(checkpoint.num_layers)
        ),
    )


def make_resident(address: WorkerAddress, experts: tuple[tuple[int, int, tuple[str, ...]], ...]) -> None:
    """Have a worker read `experts` from the file."""
    with ControlClient(address.control_endpoint) as client:
        client.request(control.Prepare("bench", experts), PREPARE_TIMEOUT_S)
        end = time.monotonic() + PREPARE_TIMEOUT_S
        while time.monotonic() < end:
            status = client.request(control.AskPrepare("bench"), PREPARE_TIMEOUT_S)
            if not isinstance(status, control.PrepareStatus) or status.error:
                raise SystemExit(f"{address.worker} could not prepare: {status}")
            if status.done:
                return
            time.sleep(0.05)
    raise SystemExit(f"{address.worker} did not prepare within {PREPARE_TIMEOUT_S} s")


def run(engine: Engine, prompts: list[list[int]], new_tokens: int) -> int:
    """Generate greedily for all prompts; returns the number of new tokens."""
    sampling = Sampling(max_tokens=new_tokens, temperature=0.0)
    for number, prompt in enumerate(prompts):
        engine.add_request(Submit(number, tuple(prompt), (), sampling))
    tokens = 0
    while engine.has_work:
        for output in engine.step().get(b"", []):
            if isinstance(output, Rejected):
                raise SystemExit(f"a request was rejected: {output}")
            tokens += len(output.token_ids) if isinstance(output, TokenOutput) else 0
    return tokens


def measure(engine: Engine, client: DispatchClient, job: dict[str, Any]) -> dict[str, Any]:
    """Run one job and report its time and its dispatches."""
    client.clear_statistics()
    started = time.perf_counter()
    tokens = run(engine, job["prompts"], job["new_tokens"])
    seconds = time.perf_counter() - started
    layers = [
        {
            "layer": layer.layer,
            "dispatch_us_p50": round(layer.dispatch_us_p50, 1),
            "dispatch_us_p99": round(layer.dispatch_us_p99, 1),
            "compute_us_p50": round(layer.compute_us_p50, 1),
            "overhead_us_p50": round(layer.overhead_us_p50, 1),
            "overhead_us_p99": round(layer.overhead_us_p99, 1),
        }
        for layer in client.statistics()
    ]
    return {"tokens": tokens, "seconds": seconds, "layers": layers}


def main() -> None:
    """Start the workers and the engine, then answer each line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    threads.configure(options.threads)
    source = f"file://{options.checkpoint}"
    checkpoint = open_checkpoint(source)
    poll_us = POLL_US if (options.workers + 1) * options.threads <= len(os.sched_getaffinity(0)) else 0
    with ExitStack() as stack:
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="fx"))
        addresses = tuple(
            stack.enter_context(worker_process(f"w{index}", source, options.threads, sockets, poll_us))
            for index in range(options.workers)
        )
        tables = TableHolder()
        tables.publish(place(checkpoint, addresses))
        client = DispatchClient(
            POOL,
            checkpoint.digest,
            tables,
            deadline_s=30.0,
            hang_timeout_s=30.0,
            refresh=lambda: None,
            poll_s=poll_us / 1e6,
        )
        stack.callback(client.close)
        config = EngineConfig(
            engine="e", pool=POOL, source=source, kv_cache_bytes=256 << 20, threads=options.threads, max_running=32
        )
        engine = Engine(checkpoint, config, client)
        print(json.dumps({"ready": True, "engine_expert_bytes": engine.statistics().expert_bytes}), flush=True)
        for line in sys.stdin:
            print(json.dumps(measure(engine, client, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
