"""Scores of groupings against what they cost the model, as tables and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gqakit.evaluation.drawing import axes_of, figure, shades
from gqakit.planning.correlation.ranks import Correlation, Picked

HEADER = (
    "score",
    "method",
    "rank correlation, all samples",
    "same layer and number of heads",
    "loss of its pick / average",
)


class Row(Protocol):
    """What a line of the table needs; see `gqakit.planning.correlation.correlate.ProxyRow`."""

    @property
    def proxy(self) -> str: ...
    @property
    def meaning(self) -> str: ...
    @property
    def overall(self) -> Correlation: ...
    @property
    def like(self) -> Correlation: ...
    @property
    def picked(self) -> Picked: ...


class Point(Protocol):
    """What a dot needs; see `gqakit.planning.correlation.correlate.Sample`."""

    @property
    def kv_heads(self) -> int: ...
    @property
    def proxies(self) -> dict[str, float]: ...
    @property
    def loss(self) -> float: ...


def lines(rows: Sequence[Row], best: Picked) -> list[tuple[str, ...]]:
    """The table under `HEADER`: every score, then what measuring itself would pick."""
    made = [
        (
            row.meaning,
            row.proxy,
            _interval(row.overall, "samples"),
            _interval(row.like, "sets"),
            _ratio(row.picked),
        )
        for row in rows
    ]
    return [*made, ("the measured loss itself", "-", "-", "-", _ratio(best))]


def _interval(found: Correlation, unit: str) -> str:
    if math.isnan(found.rho):
        return "-"
    return f"{found.rho:+.2f} ({found.low:+.2f} to {found.high:+.2f}, {found.samples} {unit})"


def _ratio(found: Picked) -> str:
    return "-" if math.isnan(found.ratio) else f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"


def plot_correlation(
    path: Path, title: str, rows: Sequence[Row], samples: Sequence[Point], loss: str
) -> None:
    """One panel a score: every sample's score against its measured loss, coloured by the heads that are left.

    `loss` says what the losses are. Samples that lose nothing have no place on the logarithmic axis and are left out.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    drawn = [sample for sample in samples if sample.loss > 0]
    counts = sorted({sample.kv_heads for sample in drawn})
    columns = min(3, len(rows))
    with figure(path, columns=columns, rows=-(-len(rows) // columns), size=(6.0, 3.4)) as axes:
        panels: list[Any] = [panel for line in axes for panel in line] if len(rows) > 3 else list(axes)
        for index, (panel, row) in enumerate(zip(panels, rows, strict=False)):
            for count, colour in zip(counts, shades(len(counts)), strict=True):
                here = [sample for sample in drawn if sample.kv_heads == count]
                panel.scatter(
                    [sample.proxies[row.proxy] for sample in here],
                    [sample.loss for sample in here],
                    s=11,
                    alpha=0.7,
                    color=colour,
                    label=f"{count} head{'s' if count > 1 else ''}",
                )
            panel.set_yscale("log")
            rho = f"ρ = {_short(row.overall)} overall, {_short(row.like)} among like"
            axes_of(panel, f"{row.meaning}\n{rho}", "score", "" if index % columns else loss)
        drawing = panels[0].figure
        drawing.suptitle(f"{title}: converting one layer alone")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def _short(found: Correlation) -> str:
    return "-" if math.isnan(found.rho) else f"{found.rho:.2f}"
