"""What all plots share. They need the `plot` extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqakit.errors import MissingDependencyError

COLOURS = ("#c44e52", "#2a6fb0", "#4c9f70", "#8172b3", "#ccb974", "#64b5cd")


@contextmanager
def figure(
    path: Path, *, columns: int = 1, rows: int = 1, size: tuple[float, float] = (7.2, 4.4)
) -> Iterator[Any]:
    """Axes to draw on, saved as an image when the block ends; a sequence (or rows) of them for several.

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
    drawing, axes = plt.subplots(rows, columns, figsize=(width, size[1] * rows), layout="constrained")
    try:
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=150)
    finally:
        plt.close(drawing)


def shades(count: int) -> Sequence[Any]:
    """A number of colours, in an order that the eye sees where they are more than a few. Only inside `figure`."""
    if count <= len(COLOURS):
        return COLOURS[:count]
    from matplotlib import colormaps

    return [colormaps["viridis"](0.95 * index / (count - 1)) for index in range(count)]


def axes_of(axes: Any, title: str, x: str, y: str) -> None:
    """Titles, a light grid, no box."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
