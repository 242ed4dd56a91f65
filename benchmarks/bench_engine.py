"""`make bench-engine`: tokens a second of Flexpert and of transformers' two ways, same checkpoint, same cores.

Systems: (a) `generate_batch`, (b) `generate` with a static batch, (c) Flexpert with one engine and one worker, (d) with
one engine and two workers; each process computes with the same number of threads. Each repeat runs every system at 32,
8 and 1 concurrent requests, one after another; ratios are taken within a repeat. Writes `build/bench/engine.json`.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import Aim, aim_of, write_report
from engine_model import VOCABULARY

from flexpert_workers import allocator
from flexpert_workers.threads import environment as thread_environment

HERE = Path(__file__).parent
CONCURRENCY = (32, 8, 1)
PROMPT_TOKENS, NEW_TOKENS = 32, 48
PACKAGES = ("torch", "transformers", "pyzmq", "numpy")
SYSTEMS = {
    "a_generate_batch": ("engine_peers.py", "--system", "generate_batch"),
    "b_generate": ("engine_peers.py", "--system", "generate"),
    "c_flexpert_1_worker": ("engine_flexpert.py", "--workers", "1"),
    "d_flexpert_2_workers": ("engine_flexpert.py", "--workers", "2"),
}


class System:
    """A system under test as a process that waits between its turns."""

    def __init__(self, name: str, checkpoint: Path, threads: int, stack: ExitStack) -> None:
        script, *arguments = SYSTEMS[name]
        environment = {**os.environ, **thread_environment(threads), **allocator.environment()}
        command = [sys.executable, str(HERE / script), *arguments, "--checkpoint", str(checkpoint)]
        self.name = name
        self._process = stack.enter_context(
            subprocess.Popen(
                [*command, "--threads", str(threads)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert self._process.stdin is not None
        stack.callback(self._process.stdin.close)  # at the end of its input it stops, and its workers with it
        self.settings = self._answer()

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Have it generate, and return what it measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{self.name} ended before it answered; its errors stand above")


def prompts_of(count: int, generator: random.Random) -> list[list[int]]:
    """Random prompts, new ones for every run, so that no prefix is cached."""
    return [[generator.randrange(1, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def measure(systems: Sequence[System], repeats: int) -> list[dict[str, Any]]:
    """One row a system, concurrency and repeat, interleaved."""
    rows = []
    for repeat in range(repeats):
        for requests in CONCURRENCY:
            prompts = prompts_of(requests, random.Random(1000 * repeat + requests))
            for system in systems:
                answer = system.run(prompts, NEW_TOKENS)
                if answer["tokens"] != requests * NEW_TOKENS:
                    raise SystemExit(f"{system.name} gave {answer['tokens']} tokens, not {requests * NEW_TOKENS}")
                rate = answer["tokens"] / answer["seconds"]
                rows.append(
                    {"system": system.name, "requests": requests, "repeat": repeat, "tokens_per_s": rate, **answer}
                )
                print(f"repeat {repeat} {requests:2} requests {system.name:22} {rate:8.1f} tokens/s", flush=True)
    return rows


def values(rows: Sequence[dict[str, Any]], system: str, requests: int) -> list[float]:
    """Tokens/s of a system at a concurrency, by repeat."""
    return [row["tokens_per_s"] for row in rows if row["system"] == system and row["requests"] == requests]


def aims_of(rows: Sequence[dict[str, Any]]) -> list[Aim]:
    """The figures that the project aims at."""

    def ratio(system: str, peer: str, requests: int) -> list[float]:
        pairs = zip(values(rows, system, requests), values(rows, peer, requests), strict=True)
        return [ours / theirs for ours, theirs in pairs]

    overhead = [
        statistics.median(layer["overhead_us_p50"] for layer in row["layers"])
        for row in rows
        if row["system"] == "c_flexpert_1_worker" and row["requests"] == 32
    ]
    one, two, peer = "c_flexpert_1_worker", "d_flexpert_2_workers", "a_generate_batch"
    return [
        aim_of("throughput_vs_generate_batch_32", ratio(one, peer, 32), 1.0, "higher", "ratio"),
        aim_of("throughput_2_workers_vs_generate_batch_32", ratio(two, peer, 32), 1.2, "higher", "ratio"),
        aim_of("dispatch_us_p50", overhead, 150.0, "lower", "us"),
        aim_of("throughput_vs_generate_batch_8", ratio(one, peer, 8), 1.0, "higher", "ratio"),
        aim_of("throughput_vs_generate_batch_1", ratio(one, peer, 1), 1.0, "higher", "ratio"),
        aim_of("throughput_vs_generate_32", ratio(one, "b_generate", 32), 1.0, "higher", "ratio"),
    ]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Median tokens/s by system and concurrency."""
    print(f"\n{'tokens/s, median':24}" + "".join(f"{requests:>10} req" for requests in CONCURRENCY))
    for system in SYSTEMS:
        medians = [statistics.median(values(rows, system, requests)) for requests in CONCURRENCY]
        print(f"{system:24}" + "".join(f"{value:14.1f}" for value in medians))
    print()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fx-bench") as scratch, ExitStack() as stack:
        checkpoint = Path(scratch) / "model"
        written = subprocess.run(
            [sys.executable, str(HERE / "engine_model.py"), str(checkpoint)], check=True, capture_output=True, text=True
        )
        parameters = int(written.stdout.split()[-1])
        systems = [System(name, checkpoint, options.threads, stack) for name in SYSTEMS]
        warm = prompts_of(32, random.Random(0))
        warmup = [{"system": system.name, "warmup": True, **system.run(warm, 8)} for system in systems]
        rows = measure(systems, options.repeats)
        settings = [
            {
                "system": system.name,
                "settings": system.settings,
                "parameters": parameters,
                "threads_per_process": options.threads,
            }
            for system in systems
        ]
    print_table(rows)
    write_report("engine", aims_of(rows), [*settings, *warmup, *rows], "cpu", PACKAGES)


if __name__ == "__main__":
    main()
