"""What every benchmark shares: the form of its JSON, interleaved repeats, ratios within a repeat."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "build" / "bench"


@dataclass(frozen=True)
class Aim:
    """One figure that the project aims at: the median over repeats and the extremes."""

    name: str
    value: float
    aim: float
    better: str
    unit: str
    spread: tuple[float, float]

    @property
    def met(self) -> bool:
        """Whether the median reaches the aim."""
        return self.value >= self.aim if self.better == "higher" else self.value <= self.aim


def aim_of(name: str, values: Sequence[float], aim: float, better: str, unit: str) -> Aim:
    """The aim's figure from one value a repeat."""
    return Aim(name, statistics.median(values), aim, better, unit, (min(values), max(values)))


def machine(device: str, packages: Sequence[str]) -> dict[str, Any]:
    """The machine and versions that a result was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory),
        "device": device,
        "processor": processor_name(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def processor_name() -> str:
    """Model name of the CPU, as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    """Short id of the checked-out commit, or "unknown" outside a checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def write_report(
    name: str, aims: Sequence[Aim], rows: Sequence[dict[str, Any]], device: str, packages: Sequence[str]
) -> Path:
    """Write `build/bench/NAME.json` and print the aims."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.json"
    report = {
        "name": name,
        "commit": commit(),
        "machine": machine(device, packages),
        "aims": [asdict(aim) for aim in aims],
        "rows": list(rows),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    for aim in aims:
        verdict = "met" if aim.met else "missed"
        low, high = aim.spread
        print(f"{aim.name:44} {aim.value:9.3f} {aim.unit:6} ({low:.3f} to {high:.3f})  aim {aim.aim:g}: {verdict}")
    print(f"written: {path.relative_to(ROOT)}")
    return path
