"""The Pareto fronts of `bench_placement` as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl


def draw_front(
    path: Path, rows: Sequence[dict[str, Any]], x: str, y: str, titles: tuple[str, str], group: str = "trace"
) -> None:
    """One panel per value of `group`: every method's rows as points, those of a method that varies joined."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    known = sorted({row[group] for row in rows})
    figure, axes = plt.subplots(1, len(known), figsize=(6 * len(known), 4.5), squeeze=False)
    for axis, value in zip(axes[0], known, strict=True):
        mine = [row for row in rows if row[group] == value and x in row and y in row]
        for method in dict.fromkeys(row["method"] for row in mine):
            points = sorted((row[x], row[y]) for row in mine if row["method"] == method)
            axis.plot(*zip(*points, strict=True), marker="o", linestyle="-" if len(points) > 1 else "", label=method)
        axis.set_title(value)
        axis.set_xlabel(titles[0])
        axis.set_ylabel(titles[1])
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
