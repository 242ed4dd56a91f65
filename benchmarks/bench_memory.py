"""`make bench-memory`: what moving an expert, losing a worker, filling a page and copying one cost.

Writes `build/bench/memory.json`. Everything that is compared is measured in turn within each repeat.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import memory_bytes
from common import Aim, aim_of, write_report
from memory_kill import POOL, Process, Worker, environment, measure_kills
from memory_model import HIDDEN
from memory_moves import SIZES_MIB, measure_moves

from flexpert_workers.checkpoint import Checkpoint, open_checkpoint
from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.messages import control
from flexpert_workers.transfer import Identity

HERE = Path(__file__).parent
PACKAGES = ("torch", "safetensors", "pyzmq", "xxhash", "numpy")
READERS = 2


def measure_bytes(checkpoint: Checkpoint, endpoints: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One repeat of filling and copying, each beside its peers."""
    page_bytes, num_pages = checkpoint.layout.page_bytes, len(memory_bytes.all_keys(checkpoint))
    for threads in (1, READERS):
        yield memory_bytes.read_plainly(checkpoint, threads)
        yield memory_bytes.fill_pages(checkpoint, threads, made_ahead=True)
        yield memory_bytes.fill_pages(checkpoint, threads, made_ahead=False)
    yield memory_bytes.load_safetensors(checkpoint)
    yield memory_bytes.copy_by_memcpy(page_bytes, num_pages)
    for kind, endpoint in endpoints.items():
        yield memory_bytes.copy_by_socket(kind, page_bytes, num_pages)
        yield memory_bytes.copy_between_domains(endpoint, Identity(POOL, checkpoint.digest), checkpoint, kind)


def start_source(kind: str, source: str, checkpoint: Checkpoint, folder: str, stack: ExitStack) -> str:
    """An owner that has every expert; where it gives them to others."""
    socket_dir = folder if kind == "ipc" else ""
    config = OwnerConfig(kind, POOL, source, "Auto", 2 << 30, f"{folder}/{kind}.sock", "127.0.0.1", socket_dir)
    Process("flexpert_workers.memory.owner", config, stack)
    worker = Worker(kind, source, folder, config.socket, stack)
    worker.prepare("all", checkpoint)
    state = worker.control.request(control.Describe(), 60)
    assert isinstance(state, control.WorkerState)
    worker.process.kill()  # its pages stay with the owner
    return state.transfer_endpoint


def measure(folder: str, repeats: int) -> list[dict[str, Any]]:
    """All rows."""
    model = Path(folder) / "model"
    subprocess.run([sys.executable, str(HERE / "memory_model.py"), str(model)], check=True)
    source = f"file://{model}"
    checkpoint = open_checkpoint(source)
    memory_bytes.warm_page_cache(model)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        endpoints = {kind: start_source(kind, source, checkpoint, folder, stack) for kind in ("ipc", "tcp")}
        for repeat in range(-1, repeats):  # the first one warms up
            for row in (*map(measure_moves, SIZES_MIB), *measure_bytes(checkpoint, endpoints)):
                rows.append({"repeat": repeat, "warmup": repeat < 0, **row})
    return rows + measure_kills(checkpoint, source, folder, HIDDEN, repeats)


def values(rows: Sequence[dict[str, Any]], figure: str, **wanted: Any) -> list[float]:
    """A figure of every repeat, of the rows that match."""
    return [
        row[figure]
        for row in rows
        if not row.get("warmup") and all(row.get(name) == value for name, value in wanted.items())
    ]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Within each repeat."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def aims_of(rows: Sequence[dict[str, Any]]) -> list[Aim]:
    """The figures that the project aims at."""
    flips = {size: values(rows, "flip_us", measure="move", size_mib=size) for size in SIZES_MIB}
    filled = values(rows, "gb_per_s", measure="fill", readers=READERS, made_ahead=True)
    read = values(rows, "gb_per_s", measure="read", threads=1)
    return [
        aim_of("flip_us_64MiB", flips[64], 100.0, "lower", "us"),
        aim_of("flip_64MiB_vs_1MiB", ratios(flips[64], flips[1]), 1.5, "lower", "ratio"),
        aim_of("kill_to_served_ms", values(rows, "kill_to_served_ms", measure="kill"), 500.0, "lower", "ms"),
        aim_of("fill_vs_read", ratios(filled, read), 0.9, "higher", "ratio"),
    ]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Medians of everything measured."""
    import statistics

    print(f"\n{'move':12}{'stop, us':>12}{'populate, us/MiB':>20}")
    for size in SIZES_MIB:
        figures = [values(rows, name, measure="move", size_mib=size) for name in ("flip_us", "populate_us_per_mib")]
        print(f"{size:3} MiB     " + "".join(f"{statistics.median(one):12.1f}" for one in figures))
    print(f"\n{'bytes':40}{'GB/s':>8}")
    kinds = {
        tuple((name, row[name]) for name in ("measure", "threads", "readers", "made_ahead", "over") if name in row)
        for row in rows
        if "gb_per_s" in row
    }
    for kind in sorted(kinds, key=str):
        label = " ".join(str(value) if name == "measure" else f"{name}={value}" for name, value in kind)
        print(f"{label:40}{statistics.median(values(rows, 'gb_per_s', **dict(kind))):8.2f}")
    print()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ.update(environment())
    with tempfile.TemporaryDirectory(prefix="fx-bench") as folder:
        rows = measure(folder, options.repeats)
    print_table(rows)
    write_report("memory", aims_of(rows), rows, "cpu", PACKAGES)


if __name__ == "__main__":
    main()
