"""A `View` as lines that fit a terminal: columns and rows that have no place are left out. Pure; `top` prints."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flexpert_operator.cli.tables import mebibytes
from flexpert_operator.cli.top_view import EngineRow, OperationView, TimeRow, View, WorkerRow

GOOD, WARNING, BAD, FAINT, STRONG = "green", "yellow", "red", "dim", "bold"
"""Styles, as `rich` names them."""

_GAP = "  "
_BARS = "▁▂▃▄▅▆▇█"
_FEW_LAYERS = 8
_STATES = {"Ready": GOOD, "Standby": FAINT, "Starting": WARNING, "Draining": WARNING, "Lost": BAD}
_LEAST_ROWS = 3

Row = TypeVar("Row")


@dataclass(frozen=True)
class Piece:
    """A stretch of a line, and how it is to look."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        rank: Columns of the highest rank go first where the terminal is narrow; those of rank 0 stay.
        right: Numbers stand on the right.
    """

    title: str
    cell: Callable[[Row], str]
    rank: int = 0
    right: bool = False


WORKERS: tuple[Column[WorkerRow], ...] = (
    Column("WORKER", lambda row: row.id),
    Column("STATE", lambda row: row.state),
    Column("LOAD", lambda row: percent(row.load_percent), right=True),
    Column("", lambda row: bar(row.load_percent), rank=4),
    Column("BUSY", lambda row: percent(row.busy_percent), rank=2, right=True),
    Column("EXPERTS", lambda row: str(row.experts), rank=1, right=True),
    Column("MEMORY", lambda row: mebibytes(row.resident_bytes), rank=2, right=True),
    Column("OF", lambda row: mebibytes(row.memory_bytes), rank=3, right=True),
    Column("POD", lambda row: row.pod, rank=5),
    Column("NODE", lambda row: row.node, rank=6),
)
ENGINES: tuple[Column[EngineRow], ...] = (
    Column("ENGINE", lambda row: row.id),
    Column("STATE", lambda row: row.state),
    Column("RUNNING", lambda row: str(row.running), right=True),
    Column("WAITING", lambda row: str(row.waiting), rank=2, right=True),
    Column("TOKENS/S", lambda row: number(row.tokens_per_second), rank=1, right=True),
    Column("KV", lambda row: percent(row.kv_percent), rank=3, right=True),
    Column("EPOCH", lambda row: row.epoch, rank=4, right=True),
    Column("POD", lambda row: row.pod, rank=5),
)


TIMES: tuple[Column[TimeRow], ...] = (
    Column("", lambda row: row.name),
    Column("P50 MS", lambda row: number(row.p50_milliseconds), right=True),
    Column("P90 MS", lambda row: number(row.p90_milliseconds), rank=2, right=True),
    Column("P99 MS", lambda row: number(row.p99_milliseconds), rank=1, right=True),
    Column("NUMBER", lambda row: str(row.count), rank=3, right=True),
)


def lines_of(view: View, width: int, height: int | None = None) -> list[Line]:
    """The lines, each at most `width` characters, together at most `height` of them; None: as many as there are."""
    found = [*head(view, width), *middle(view, width)]
    left = None if height is None else max(height - len(found) - 4, 2 * _LEAST_ROWS)
    engines = None if left is None else min(len(view.engines), max(left // 3, _LEAST_ROWS))
    workers = None if left is None or engines is None else max(left - engines, _LEAST_ROWS)
    found += [(), *table(WORKERS, view.workers, width, workers), (), *table(ENGINES, view.engines, width, engines)]
    return found[:height]


def text_of(lines: Iterable[Line]) -> str:
    """Without looks."""
    return "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)


def head(view: View, width: int) -> list[Line]:
    """What the pool is, and how it is."""
    at = time.strftime("%H:%M:%S", time.localtime(view.at))
    style = {"True": GOOD, "False": BAD}.get(view.ready, WARNING)
    state = {"True": "Ready", "False": "not Ready"}.get(view.ready, "Ready is unknown")
    first = (
        Piece(f"{view.name} ({view.namespace})", STRONG),
        Piece(f"{_GAP}{state}", style),
        Piece(f"{_GAP}epoch {view.epoch}"),
        Piece(f"{_GAP}{at}", FAINT),
    )
    found = [first, (Piece(view.model or "no model yet", FAINT),)]
    if view.ready != "True" and view.reason:
        found.append((Piece(view.reason, WARNING),))
    if view.message:
        found.append((Piece(view.message, BAD),))
    if view.lost_experts:
        found.append((Piece(f"{view.lost_experts} experts have no live replica", BAD),))
    if view.trouble:
        found.append((Piece(view.trouble, BAD),))
    return [cut(line, width) for line in found]


def middle(view: View, width: int) -> list[Line]:
    """Traffic, balance, what goes on."""
    running, waiting = sum(row.running for row in view.engines), sum(row.waiting for row in view.engines)
    batch = "" if view.batch_tokens is None else f"{_GAP}{view.batch_tokens:.1f} tokens a step"
    said = f"{number(view.tokens_per_second)} tokens/s{_GAP}{running} running{_GAP}{waiting} waiting{batch}"
    found: list[Line] = [(Piece(said),)]
    if any(row.count for row in view.times):
        found += table(TIMES, view.times, width, None)
    if view.layer_imbalance:
        found.append(imbalance(view.layer_imbalance))
    if view.operation is not None:
        found.append(operation(view.operation))
    if view.autoscaling is not None:
        said = f"autoscaling by {view.autoscaling['policy']}: {view.autoscaling['message']}"
        found.append((Piece(said),))
    return [cut(line, width) for line in found]


def imbalance(layers: Sequence[float]) -> Line:
    """The busiest worker over the average one: the mean of the layers, the worst, and each of them."""
    worst = max(range(len(layers)), key=lambda layer: layers[layer])
    mean = sum(layers) / len(layers)
    style = BAD if layers[worst] >= 2 else WARNING if layers[worst] >= 1.25 else GOOD
    said = f"imbalance {mean:.2f}, worst {layers[worst]:.2f} in layer {worst}{_GAP}"
    each = " ".join(f"{one:.2f}" for one in layers) if len(layers) <= _FEW_LAYERS else sparkline(layers)
    return Piece(said, style), Piece(each)


def operation(shown: OperationView) -> Line:
    """The reconfiguration that runs, or how the last one ended."""
    waves = f" wave {shown.wave}/{shown.waves}" if shown.waves > 1 else ""
    if not shown.running:
        style = GOOD if shown.phase == "Succeeded" else WARNING
        said = f"last reconfiguration {shown.cause} {shown.id}: "
        moved = f", {shown.moved_experts} experts, {mebibytes(shown.moved_bytes)} in {shown.seconds:.1f} s"
        why = f" ({shown.message})" if shown.message else ""
        return Piece(said), Piece(shown.phase, style), Piece(moved + why)
    done = ""
    if shown.percent is not None:
        done = f" {bar(shown.percent)} {shown.percent:.0f}% of {mebibytes(shown.expected_bytes)}"
    expected = f" of about {shown.expected_seconds:.1f}" if shown.expected_seconds else ""
    said = f"reconfiguration {shown.cause} {shown.id}: "
    return Piece(said, STRONG), Piece(shown.phase, WARNING), Piece(f"{waves}{done}, {shown.seconds:.1f}{expected} s")


def table(columns: Sequence[Column[Row]], rows: Sequence[Row], width: int, most: int | None) -> list[Line]:
    """The columns that fit, and at most `most` lines of rows."""
    shown = rows if most is None or len(rows) <= most else rows[: most - 1]
    cells = [[column.title for column in columns], *([column.cell(row) for column in columns] for row in shown)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    chosen = fitting([column.rank for column in columns], widths, width)
    found = [cut((Piece(joined(cells[0], columns, widths, chosen), FAINT),), width)]
    for row, line in zip(shown, cells[1:], strict=True):
        style = _STATES.get(getattr(row, "state", ""), "")
        found.append(cut((Piece(joined(line, columns, widths, chosen), style if style != GOOD else ""),), width))
    if len(shown) < len(rows):
        found.append(cut((Piece(f"… {len(rows) - len(shown)} more", FAINT),), width))
    return found


def fitting(ranks: Sequence[int], widths: Sequence[int], width: int) -> list[int]:
    """Positions of the columns that fit next to each other, the highest ranks left out first."""
    chosen = list(range(len(ranks)))
    while sum(widths[index] + len(_GAP) for index in chosen) - len(_GAP) > width:
        last = max(chosen, key=lambda index: ranks[index])
        if ranks[last] == 0:
            break
        chosen.remove(last)
    return chosen


def joined(cells: Sequence[str], columns: Sequence[Column[Row]], widths: Sequence[int], chosen: Sequence[int]) -> str:
    """One line of a table."""
    return _GAP.join(
        cells[index].rjust(widths[index]) if columns[index].right else cells[index].ljust(widths[index])
        for index in chosen
    ).rstrip()


def cut(line: Line, width: int) -> Line:
    """The line, cut where the terminal ends."""
    found, left = [], width
    for piece in line:
        text = piece.text.replace("\n", " ")
        if len(text) > left:
            found.append(Piece(text[: max(left - 1, 0)] + "…" if left > 0 else "", piece.style))
            break
        found.append(Piece(text, piece.style))
        left -= len(text)
    return tuple(found)


def number(value: float | None) -> str:
    """A rate for people."""
    return "-" if value is None else f"{value:.1f}"


def percent(value: float | None) -> str:
    """A part for people."""
    return "-" if value is None else f"{value:.0f}%"


def bar(value: float | None, cells: int = 10) -> str:
    """A part of 100 as a bar."""
    full = round(cells * min(max(value or 0.0, 0.0), 100.0) / 100)
    return "█" * full + "░" * (cells - full) if value is not None else ""


def sparkline(values: Sequence[float]) -> str:
    """Values from 1.0 to the largest, one character each."""
    most = max(max(values), 1.01)
    return "".join(_BARS[round((len(_BARS) - 1) * max(one - 1.0, 0.0) / (most - 1.0))] for one in values)
