"""Heat maps of placements: layers × replicas, grouped by worker, coloured by the load that each replica serves.

`flexpert plan --heat-map FILE` draws them. SVG is written here, PNG by matplotlib where it is installed. The colours
are those of cividis: people with any kind of colour vision read them alike, and they get lighter with the load.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from flexpert_operator.cli.errors import CliError
from flexpert_placement.instance import Floats, Ints
from flexpert_placement.types import Placement, PlacementProblem

_CIVIDIS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))
_MARGIN, _TOP, _LABEL, _FOOT, _GAP = 12, 58, 34, 66, 6
_NUMBERED = 13
"""Width of a cell from which on it shows its expert's number."""
_WIDEST = 1500


@dataclass(frozen=True, eq=False)
class Grid:
    """The cells, by layer and column; the columns of a worker stand together.

    Attributes:
        experts: [layers, columns] expert of each cell, -1 for none.
        loads: [layers, columns] load of each cell, 1 being an expert's mean in its layer; NaN for none.
        shares: [layers, columns] part of its expert's load that the cell serves.
        blocks: (worker, its first column, the column behind its last).
        imbalance: [layers] the busiest worker's time over the average one.
        busiest: [layers] which worker that is.
    """

    experts: Ints
    loads: Floats
    shares: Floats
    blocks: tuple[tuple[str, int, int], ...]
    imbalance: Floats
    busiest: tuple[str, ...]

    @property
    def top(self) -> float:
        """The highest load of a cell."""
        return float(np.nanmax(self.loads))


def check_path(path: str) -> None:
    """Refuse a file that cannot be drawn, before anything is computed.

    Raises:
        CliError: Another ending than .svg or .png, or .png without matplotlib.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".svg", ".png"):
        raise CliError(f"--heat-map {path}: its name has to end in .svg or .png")
    if ending == ".png":
        _matplotlib()


def write(path: str, problem: PlacementProblem, placement: Placement) -> None:
    """Draw a placement.

    Raises:
        CliError: The file cannot be written, or matplotlib is missing.
    """
    grid = grid_of(problem, placement)
    try:
        if Path(path).suffix.lower() == ".svg":
            Path(path).write_text(svg_of(grid))
        else:
            _write_png(path, grid)
    except OSError as error:
        raise CliError(f"--heat-map {path}: {error.strerror}") from error


def grid_of(problem: PlacementProblem, placement: Placement) -> Grid:
    """The cells of a placement, each worker's hottest replicas first."""
    rows = [[[] for _ in problem.workers] for _ in problem.loads]  # type: list[list[list[tuple[float, int, float]]]]
    position = {worker.id: number for number, worker in enumerate(problem.workers)}
    for (layer, index), shares in placement.items():
        row = problem.loads[layer]
        mean = sum(row) / len(row)
        for worker, share in shares.items():
            if worker in position:
                rows[layer][position[worker]].append((share * row[index] / mean if mean else share, index, share))
    widths = [max(len(row[number]) for row in rows) for number in range(len(problem.workers))]
    starts = np.cumsum([0, *widths]).tolist()
    experts = np.full((len(rows), starts[-1]), -1, dtype=np.int64)
    loads, shared = np.full(experts.shape, np.nan), np.full(experts.shape, np.nan)
    for layer, found in enumerate(rows):
        for number, cells in enumerate(found):
            for column, (load, index, share) in enumerate(sorted(cells, reverse=True), start=starts[number]):
                experts[layer, column], loads[layer, column], shared[layer, column] = index, load, share
    times = np.array([[sum(cell[0] for cell in cells) for cells in row] for row in rows])
    times /= np.array([worker.speed for worker in problem.workers])
    speeds = np.array([worker.speed for worker in problem.workers])
    average = (times * speeds).sum(axis=1) / speeds.sum()
    blocks = tuple((worker.id, starts[number], starts[number + 1]) for number, worker in enumerate(problem.workers))
    busiest = tuple(problem.workers[number].id for number in times.argmax(axis=1))
    return Grid(experts, loads, shared, blocks, times.max(axis=1) / np.maximum(average, 1e-300), busiest)


def svg_of(grid: Grid) -> str:
    """The picture as SVG."""
    layers, columns = grid.experts.shape
    gaps = _GAP * (len(grid.blocks) - 1)
    width = max(3.0, min(18.0, (_WIDEST - gaps) / columns))
    height = max(8.0, min(18.0, width))
    right = _MARGIN + _LABEL + columns * width + gaps
    total = (max(right + 62, 420), _TOP + layers * height + _FOOT)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total[0]:.0f}" height="{total[1]:.0f}" '
        f'viewBox="0 0 {total[0]:.0f} {total[1]:.0f}" font-family="sans-serif" font-size="10">',
        "<title>Experts by worker and load</title>",
        f'<rect width="{total[0]:.0f}" height="{total[1]:.0f}" fill="#ffffff"/>',
        _text(_MARGIN, 18, "Replicas by worker and the load they serve, layer by layer", size=13),
        _text(right + 8, _TOP - 8, "max/mean"),
    ]
    lines += _blocks(grid, width, height)
    lines += _layers(grid, height, right)
    lines += _legend(grid, _TOP + layers * height + 22)
    return "\n".join([*lines, "</svg>", ""])


def colour(load: float, top: float) -> tuple[int, int, int]:
    """Red, green and blue of a load, on a scale of square roots up to `top`."""
    place = np.sqrt(min(max(load / top, 0.0), 1.0)) * (len(_CIVIDIS) - 1) if top > 0 else 0.0
    low = min(int(place), len(_CIVIDIS) - 2)
    pairs = zip(_CIVIDIS[low], _CIVIDIS[low + 1], strict=True)
    red, green, blue = (round(one + (other - one) * (place - low)) for one, other in pairs)
    return red, green, blue


def _blocks(grid: Grid, width: float, height: float) -> Iterable[str]:
    for number, (worker, first, behind) in enumerate(grid.blocks):
        left = _MARGIN + _LABEL + first * width + number * _GAP
        fits = max(1, int(((behind - first) * width) // 6))
        short = worker if len(worker) <= fits else f"…{worker[-max(fits - 1, 1) :]}"
        yield f"<g><title>{escape(worker)}</title>{_text(left, _TOP - 8, short)}</g>"
        for layer, column in np.ndindex(len(grid.experts), behind - first):
            if not np.isnan(grid.loads[layer, first + column]):
                yield _cell(
                    grid, layer, first + column, (left + column * width, _TOP + layer * height, width, height), worker
                )


def _cell(grid: Grid, layer: int, column: int, box: tuple[float, float, float, float], worker: str) -> str:
    load, expert, share = grid.loads[layer, column], grid.experts[layer, column], grid.shares[layer, column]
    red, green, blue = colour(load, grid.top)
    left, top, width, height = box
    said = f"layer {layer}, expert {expert} on {worker}: {load:.2f} × the mean"
    said += f", {100 * share:.0f} % of its traffic" if share < 1 else ""
    drawn = (
        f'<g><title>{escape(said)}</title><rect x="{left:.1f}" y="{top:.1f}" width="{width - 0.5:.1f}" '
        f'height="{height - 0.5:.1f}" fill="#{red:02x}{green:02x}{blue:02x}"/>'
    )
    if width >= _NUMBERED:
        ink = "#000000" if 299 * red + 587 * green + 114 * blue > 128_000 else "#ffffff"
        drawn += (
            f'<text x="{left + width / 2:.1f}" y="{top + height / 2 + 2.5:.1f}" font-size="7" text-anchor="middle" '
            f'fill="{ink}">{expert}</text>'
        )
    return drawn + "</g>"


def _layers(grid: Grid, height: float, right: float) -> Iterable[str]:
    for layer in range(len(grid.experts)):
        y = _TOP + (layer + 1) * height - height / 2 + 3
        yield _text(_MARGIN, y, f"L{layer}")
        said = f"layer {layer}: {grid.busiest[layer]} is busiest"
        yield f"<g><title>{escape(said)}</title>{_text(right + 8, y, f'{grid.imbalance[layer]:.3f}')}</g>"


def _legend(grid: Grid, y: float) -> Iterable[str]:
    """A strip of the scale, with loads written beneath it."""
    steps, width = 60, 4.0
    for step in range(steps):
        red, green, blue = colour(grid.top * (step / (steps - 1)) ** 2, grid.top)
        left = _MARGIN + _LABEL + step * width
        fill = f"#{red:02x}{green:02x}{blue:02x}"
        yield f'<rect x="{left:.1f}" y="{y:.1f}" width="{width + 0.5:.1f}" height="10" fill="{fill}"/>'
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        left = _MARGIN + _LABEL + part * steps * width
        yield _text(left - 6, y + 22, f"{grid.top * part**2:.2g}")
    yield _text(_MARGIN + _LABEL, y + 36, "load of a replica; 1 is the mean of its layer's experts")


def _text(x: float, y: float, text: str, size: int = 10) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="#222222">{escape(text)}</text>'


def _matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CliError(
            "a PNG needs matplotlib: install it with `pip install 'flexpert[plots]'`, or name a file that ends in .svg"
        ) from error


def _write_png(path: str, grid: Grid) -> None:
    _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    layers, columns = grid.experts.shape
    figure = Figure(figsize=(min(24.0, 3 + columns * 0.16), min(20.0, 2 + layers * 0.16)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(
        np.ma.masked_invalid(grid.loads), aspect="auto", cmap="cividis", norm=PowerNorm(0.5, 0.0, grid.top)
    )
    for _, first, _ in grid.blocks[1:]:
        axes.axvline(first - 0.5, color="white", linewidth=2)
    axes.set_xticks([(first + behind - 1) / 2 for _, first, behind in grid.blocks])
    axes.set_xticklabels([worker for worker, _, _ in grid.blocks], rotation=45, ha="right")
    axes.set_ylabel("MoE layer")
    axes.set_title("Replicas by worker and the load they serve, layer by layer")
    figure.colorbar(image, label="load of a replica; 1 is the mean of its layer's experts")
    figure.savefig(path, dpi=120)
