"""What all plots share: one style, readable on light and on dark pages. They need the `plot` extra."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqakit.errors import MissingDependencyError

BASELINE, FOLD = "#d1495b", "#2f9e6e"
"""The colours of neighbour mean (GQA), which everything is compared with, and of fold, in every plot."""
COLOURS = ("#3b82c4", "#8f7fd1", "#c98a2b", "#3aa6b9", "#9c5b8f")
"""Colours of everything else, in the order of a plot's legend."""
INK = "#787f89"
"""Of text, axes and levels: between white and black, since a plot has no ground of its own and lies on either."""


@contextmanager
def figure(
    path: Path,
    *,
    columns: int = 1,
    rows: int = 1,
    size: tuple[float, float] = (7.2, 4.4),
    made_by: str = "",
    alike: bool = False,
) -> Iterator[Any]:
    """Axes to draw on, saved as an image when the block ends; a sequence (or rows) of them for several.

    Args:
        path: where; the ending decides the format.
        columns, rows: of axes. size: inches of one of them.
        made_by: the line below that says what the figures come from.
        alike: one range of values for the axes that stand side by side.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("plots need the 'plot' extra: pip install 'gqakit[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    width = size[0] * (1 if columns == 1 else 0.72 * columns)
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    with plt.rc_context({**dict.fromkeys(inked, INK), "figure.facecolor": "none", "axes.facecolor": "none"}):
        drawing, axes = plt.subplots(
            rows,
            columns,
            figsize=(width, size[1] * rows),
            layout="constrained",
            sharey="row" if alike else False,
        )
        try:
            yield axes
            if made_by:
                drawing.supxlabel(made_by, x=0.01, ha="left", fontsize=7.5)
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.savefig(path, dpi=150)
        finally:
            plt.close(drawing)


def shades(count: int) -> Sequence[Any]:
    """Colours of an ordered quantity, from little to much. Only inside `figure`."""
    from matplotlib.colors import LinearSegmentedColormap

    between = LinearSegmentedColormap.from_list("blue to amber", (COLOURS[0], COLOURS[2]))
    return [between(index / max(1, count - 1)) for index in range(count)]


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each line of a plot by its name: GQA's neighbours and fold have theirs, others come in turn."""
    known = {"gqa": iter((BASELINE,)), "neighbour": iter((BASELINE,)), "fold": iter((FOLD, "#7da32f"))}
    rest = iter(COLOURS)
    return {name: next(known.get(re.split(r"\W", name.lower())[0], rest), INK) for name in names}


def axes_of(axes: Any, title: str, x: str, y: str) -> None:
    """Titles, a light grid, no box."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
