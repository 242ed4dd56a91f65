"""What the run found, as `build/reliability.json` and, where asked for, as the table of `docs/reliability.md`."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"
WRITE = "FLEXPERT_WRITE_RELIABILITY"
BEGIN, END = "<!-- cells: begin -->", "<!-- cells: end -->"
PHASES = ("provision", "prepare", "commit", "retire", "deprovision")
VICTIMS = ("operator", "pool controller", "page owner", "source worker", "target worker", "engine")

Cell = tuple[str, str]
"""(phase, victim)"""


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
    """All cells that were run."""

    cells: dict[Cell, Found] = field(default_factory=dict)
    completed: int = 0

    def write(self, impossible: Mapping[Cell, str]) -> None:
        """Write the figures, and renew the document where that is asked for and every cell was run."""
        folder = ROOT / "build"
        folder.mkdir(exist_ok=True)
        rows = [{"phase": phase, "victim": victim} | asdict(found) for (phase, victim), found in self.cells.items()]
        (folder / "reliability.json").write_text(json.dumps({"requests": self.completed, "cells": rows}, indent=1))
        if os.environ.get(WRITE) and len(self.cells) + len(impossible) == len(PHASES) * len(VICTIMS):
            before, _, behind = DOCUMENT.read_text().partition(BEGIN)
            behind = behind.partition(END)[2]
            DOCUMENT.write_text(f"{before}{BEGIN}\n{self._table(impossible)}\n{END}{behind}")

    def _table(self, impossible: Mapping[Cell, str]) -> str:
        lines = ["| killed | " + " | ".join(PHASES) + " |", "|---" * (len(PHASES) + 1) + "|"]
        for victim in VICTIMS:
            cells = [self._cell((phase, victim), impossible) for phase in PHASES]
            lines.append(f"| {victim} | " + " | ".join(cells) + " |")
        said = f"\n{self.completed} requests were completed meanwhile; none failed, and no token differed."
        return "\n".join([*lines, said])

    def _cell(self, cell: Cell, impossible: Mapping[Cell, str]) -> str:
        if cell in impossible:
            return f"cannot be: {impossible[cell]}"
        found = self.cells[cell]
        return f"✓ {found.change}: {found.ended}, {found.healed_s:.1f} s"


def documented() -> dict[Cell, str]:
    """The cells of the document, as they stand there."""
    table = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line][2:]
    return {(phase, row[0]): cell for row in rows for phase, cell in zip(PHASES, row[1:], strict=True)}
