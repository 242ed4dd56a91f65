"""`make bench-serving`: what the front door costs over a direct engine call, and its rate against bare servers'.

A null engine (`serving_engine.py`), an ingress in front of it, a bare `grpc.aio` and a bare FastAPI server
(`serving_bare.py`) are a process each; the client is this one. Each repeat measures all of them, one after another.
Writes `build/bench/serving.json`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from common import ROOT, Aim, aim_of, write_report
from serving_load import PROMPT, Call, Direct, Grpc, Http, Times, rate
from tokenizers import Tokenizer

from flexpert_proto import pool_pb2, pool_pb2_grpc

HERE = Path(__file__).parent
MODEL = ROOT / "examples" / "models" / "tiny-moe"
CONCURRENCY = 32
TTFT_STREAMS, TOKEN_STREAMS, STREAM_TOKENS, PACE_US = 200, 10, 128, 4000
PINGS = (("grpc.http2.min_ping_interval_without_data_ms", 5_000), ("grpc.keepalive_permit_without_calls", 1))
"""A pool controller lets its watchers ping it while nothing happens."""
PACKAGES = ("grpcio", "fastapi", "uvicorn", "uvloop", "httptools", "pyzmq", "msgspec")


class OneEngine(pool_pb2_grpc.PoolMembershipServicer):
    """A pool controller that lists one engine for ever."""

    def __init__(self, endpoint: str) -> None:
        self._list = pool_pb2.EngineList(
            pool="bench",
            model=pool_pb2.Model(source=f"file://{MODEL}"),
            engines=[pool_pb2.Engine(id="null", endpoint=endpoint, state=pool_pb2.Engine.READY)],
        )

    async def WatchEngines(self, request: Any, context: Any) -> AsyncIterator[pool_pb2.EngineList]:  # noqa: N802
        yield self._list
        await asyncio.Event().wait()

    async def ReportIngress(self, request: Any, context: Any) -> pool_pb2.IngressReportResponse:  # noqa: N802
        return pool_pb2.IngressReportResponse()

    async def Attach(self, request: Any, context: Any) -> AsyncIterator[pool_pb2.EngineDirective]:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "its engine has no lease")
        yield pool_pb2.EngineDirective()  # never reached: makes a stream of it

    async def SendTrace(self, request: Any, context: Any) -> pool_pb2.SendTraceResponse:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "its engine records nothing")
        return pool_pb2.SendTraceResponse()


def start(stack: ExitStack, command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Start a process that is killed at the end; returns the first line it prints."""
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{command} ended before it served; its errors stand above")
    return line.strip()


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p99."""
    return {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99))}


async def latencies(system: "Direct | Grpc", streams: int) -> dict[str, Any]:
    """Times to a first token, of the tokens of an engine that never waits, and of the delivery of paced ones."""
    first = [await system.stream(1, 0) for _ in range(streams)]
    quick = [await system.stream(STREAM_TOKENS, 0) for _ in range(TOKEN_STREAMS)]
    paced: list[Times] = [await system.stream(STREAM_TOKENS, PACE_US) for _ in range(2)]
    return {
        "ttft_ms": percentiles([times.ttft_ms for times in first]),
        "token_ms": percentiles([times.token_ms for times in quick]),
        "delivery_ms": percentiles([delay for times in paced for delay in times.delivery_ms[1:]]),
    }


async def rates(ports: dict[str, int], seconds: float) -> dict[str, float]:
    """Requests a second of each server, by 32 requests at once."""
    measured = {}
    for name, port in ports.items():
        async with AsyncExitStack() as stack:
            calls = await (grpc_calls(port, stack) if name.startswith("grpc") else http_calls(port, stack))
            measured[name] = await rate(calls, seconds)
    return measured


async def grpc_calls(port: int, stack: AsyncExitStack) -> list[Call]:
    """Requests at once over one connection."""
    client = Grpc(port)
    stack.push_async_callback(client.close)
    return [client.request] * CONCURRENCY


async def http_calls(port: int, stack: AsyncExitStack) -> list[Call]:
    """Requests at once over a connection each."""
    clients = [Http(port) for _ in range(CONCURRENCY)]
    for client in clients:
        await client.connect()
        stack.push_async_callback(client.close)
    return [client.request for client in clients]


async def wait_until_ready(port: int) -> None:
    """Until the ingress has its model and its engine."""
    client = Grpc(port)
    await client.request()
    await client.close()


async def measure(repeats: int, seconds: float) -> list[dict[str, Any]]:
    """One row a repeat, after a warm-up, which is the first row."""
    rows = []
    with ExitStack() as processes:
        endpoint = start(processes, [str(HERE / "serving_engine.py")])
        pool = grpc.aio.server(options=PINGS)
        pool_pb2_grpc.add_PoolMembershipServicer_to_server(OneEngine(endpoint), pool)
        address = f"127.0.0.1:{pool.add_insecure_port('127.0.0.1:0')}"
        await pool.start()
        environment = {
            "FLEXPERT_POOL_CONTROL": address,
            "FLEXPERT_GRPC_PORT": "0",
            "FLEXPERT_HTTP_PORT": "0",
            "FLEXPERT_BIND_HOST": "127.0.0.1",
        }
        ingress = json.loads(await asyncio.to_thread(start, processes, ["-m", "flexpert_workers.ingress"], environment))
        ports = {
            "grpc": int(ingress["grpc_port"]),
            "grpc_bare": int(start(processes, [str(HERE / "serving_bare.py"), "grpc"])),
            "http": int(ingress["http_port"]),
            "http_bare": int(start(processes, [str(HERE / "serving_bare.py"), "http"])),
        }
        await wait_until_ready(ports["grpc"])
        ids = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(PROMPT).ids
        direct, door = Direct(endpoint, ids), Grpc(ports["grpc"])
        for repeat in range(-1, repeats):
            row: dict[str, Any] = {"repeat": repeat, "warmup": repeat < 0}
            row["direct"] = await latencies(direct, TTFT_STREAMS)
            row["door"] = await latencies(door, TTFT_STREAMS)
            row["requests_per_s"] = await rates(ports, seconds)
            rows.append(row)
            print_row(row)
        await door.close()
        await pool.stop(None)
    return rows


def print_row(row: dict[str, Any]) -> None:
    """One line a repeat."""
    added = {key: row["door"][key]["p50"] - row["direct"][key]["p50"] for key in row["direct"]}
    parts = [f"{key.removesuffix('_ms')} +{value:.3f} ms" for key, value in added.items()]
    parts += [f"{name} {value:.0f}/s" for name, value in row["requests_per_s"].items()]
    print(f"repeat {row['repeat']}: " + ", ".join(parts), flush=True)


def aims_of(rows: Sequence[dict[str, Any]]) -> list[Aim]:
    """The figures that the project aims at."""

    def added(key: str, percentile: str) -> list[float]:
        return [row["door"][key][percentile] - row["direct"][key][percentile] for row in rows]

    def ratio(name: str) -> list[float]:
        return [row["requests_per_s"][name] / row["requests_per_s"][f"{name}_bare"] for row in rows]

    return [
        aim_of("ttft_added_ms_p50", added("ttft_ms", "p50"), 2.0, "lower", "ms"),
        aim_of("ttft_added_ms_p99", added("ttft_ms", "p99"), 10.0, "lower", "ms"),
        aim_of("token_added_ms_p50", added("token_ms", "p50"), 0.2, "lower", "ms"),
        aim_of("token_added_ms_p99", added("token_ms", "p99"), 0.4, "lower", "ms"),
        aim_of("token_delivery_added_ms_p50", added("delivery_ms", "p50"), 1.0, "lower", "ms"),
        aim_of("grpc_rps_vs_bare", ratio("grpc"), 0.5, "higher", "ratio"),
        aim_of("http_rps_vs_bare", ratio("http"), 0.5, "higher", "ratio"),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of requests a second")
    options = parser.parse_args()
    rows = asyncio.run(measure(options.repeats, options.seconds))
    write_report("serving", aims_of([row for row in rows if not row["warmup"]]), rows, "cpu", PACKAGES)


if __name__ == "__main__":
    main()
