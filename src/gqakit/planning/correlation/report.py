"""Scores of groupings against what they cost the model, as tables and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.evaluation.drawing import axes_of, figure, shades

if TYPE_CHECKING:
    from gqakit.planning.correlation.correlate import Correlated, ProxyRow
    from gqakit.planning.correlation.ranks import Correlation, Picked

HEADER = (
    "score",
    "method",
    "rank correlation, all samples",
    "same layer and number of heads",
    "loss of its pick / average",
)


UNITS = {"optimal": "relative squared error", "qcqa": "squared distance of weights"}
"""Of scores; the others are the within-cluster error of heads whose inner products are their similarities."""


def lines(rows: Sequence[ProxyRow], best: Picked) -> list[tuple[str, ...]]:
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


def plot_correlation(path: Path, title: str, found: Correlated, made_by: str = "") -> None:
    """One panel per score: every sample's score against its measured loss, coloured by the heads that are left.

    Samples that lose nothing have no place on the logarithmic axis and are left out. `made_by` is the line below that says
    what the figures come from.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    drawn = [sample for sample in found.samples if sample.loss > 0]
    counts = sorted({sample.kv_heads for sample in drawn})
    columns = min(3, len(found.rows))
    shape = {"columns": columns, "rows": -(-len(found.rows) // columns), "alike": True}
    with figure(path, **shape, size=(6.0, 3.4), made_by=made_by) as axes:
        panels: list[Any] = [panel for line in axes for panel in line] if len(found.rows) > 3 else list(axes)
        for index, (panel, row) in enumerate(zip(panels, found.rows, strict=False)):
            for count, colour in zip(counts, shades(len(counts)), strict=True):
                here = [sample for sample in drawn if sample.kv_heads == count]
                scores, losses = [s.proxies[row.proxy] for s in here], [s.loss for s in here]
                label = f"{count} head{'s' if count > 1 else ''}"
                panel.scatter(scores, losses, s=11, alpha=0.7, color=colour, label=label)
            panel.set_yscale("log")
            rho = f"ρ = {_short(row.overall)} overall, {_short(row.like)} among like"
            unit = UNITS.get(row.proxy, "within-cluster error")
            axes_of(panel, f"{row.meaning}\n{rho}", unit, "" if index % columns else found.loss)
        drawing = panels[0].figure
        drawing.suptitle(f"{title}: converting one layer alone")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def _short(found: Correlation) -> str:
    return "-" if math.isnan(found.rho) else f"{found.rho:.2f}"
