"""What the run found, as `build/reliability.json` and, where asked for, as the table of `docs/reliability.md`."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"
FIGURES = ROOT / "build" / "reliability.json"
BEGIN, END = "<!-- cells: begin -->", "<!-- cells: end -->"
PHASES = ("provision", "prepare", "commit", "retire", "deprovision")
RAY_HEAD = "Ray head"
VICTIMS = ("operator", "pool controller", "page owner", "source worker", "target worker", "engine", RAY_HEAD)

Cell = tuple[str, str]
"""(phase, victim)"""

IMPOSSIBLE: dict[Cell, str] = {
    ("deprovision", "source worker"): "it was ended when it had nothing left, before its pod goes",
}
MESSAGES = {
    "provision": ("FirstDescribe", 0),
    "prepare": ("AskPrepare", 0),
    "commit": ("StoreTable", 1),
    "retire": ("Retire", 0),
}
"""What is held on its way to workers so that a phase lasts, and how many of these messages pass before."""


def runs_all() -> bool:
    """Whether every cell is run, and the document renewed: what `make faults` asks for."""
    return os.environ.get("FLEXPERT_FAULTS") == "1"


@dataclass(frozen=True)
class Found:
    """What a death led to.

    Attributes:
        change: How the pool was being changed.
        ended: How the operation that was under way ended.
        healed_s: Seconds from the death to the wanted size, with nothing more under way.
    """

    change: str
    ended: str
    healed_s: float


@dataclass
class Report:
    """All cells that were run; the requests that were completed meanwhile, by kind of pool.

    Where all are run, those of an earlier run stand until they are run again: the folder may be run file by file.
    """

    cells: dict[Cell, Found] = field(default_factory=dict)
    completed: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls) -> Self:
        """What is known before anything is run."""
        if not (runs_all() and FIGURES.exists()):
            return cls()
        earlier = json.loads(FIGURES.read_text())
        found = {
            (row["phase"], row["victim"]): Found(row["change"], row["ended"], row["healed_s"])
            for row in earlier["cells"]
        }
        return cls(found, earlier["requests"])

    def write(self) -> None:
        """Write the figures, and renew the document where all cells are asked for and known."""
        FIGURES.parent.mkdir(exist_ok=True)
        rows = [{"phase": phase, "victim": victim} | asdict(found) for (phase, victim), found in self.cells.items()]
        FIGURES.write_text(json.dumps({"requests": self.completed, "cells": rows}, indent=1))
        if runs_all() and len(self.cells) + len(IMPOSSIBLE) == len(PHASES) * len(VICTIMS):
            before, _, behind = DOCUMENT.read_text().partition(BEGIN)
            behind = behind.partition(END)[2]
            DOCUMENT.write_text(f"{before}{BEGIN}\n{self._table()}\n{END}{behind}")

    def _table(self) -> str:
        lines = ["| killed | " + " | ".join(PHASES) + " |", "|---" * (len(PHASES) + 1) + "|"]
        for victim in VICTIMS:
            lines.append(f"| {victim} | " + " | ".join(self._cell((phase, victim)) for phase in PHASES) + " |")
        completed = sum(self.completed.values())
        return "\n".join(
            [*lines, f"\n{completed} requests were completed meanwhile; none failed, and no token differed."]
        )

    def _cell(self, cell: Cell) -> str:
        if cell in IMPOSSIBLE:
            return f"cannot be: {IMPOSSIBLE[cell]}"
        found = self.cells[cell]
        return f"✓ {found.change}: {found.ended}, {found.healed_s:.1f} s"


def documented() -> dict[Cell, str]:
    """The cells of the document, as they stand there."""
    table = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line][2:]
    return {(phase, row[0]): cell for row in rows for phase, cell in zip(PHASES, row[1:], strict=True)}
