"""Scores of groupings against what they cost the model, as tables and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gqakit.evaluation.correlation import Correlation
from gqakit.report.drawing import COLOURS, axes_of, figure

HEADER = ("score", "method", "rank correlation, all samples", "same layer and number of heads")


class Row(Protocol):
    """What a line of the table needs; see `gqakit.api.correlating.ProxyRow`."""

    @property
    def proxy(self) -> str: ...
    @property
    def meaning(self) -> str: ...
    @property
    def overall(self) -> Correlation: ...
    @property
    def like(self) -> Correlation: ...


class Point(Protocol):
    """What a dot needs; see `gqakit.api.correlating.Sample`."""

    @property
    def kv_heads(self) -> int: ...
    @property
    def proxies(self) -> dict[str, float]: ...
    @property
    def loss(self) -> float: ...


def cells(row: Row) -> tuple[str, ...]:
    """A line of the table, in the order of `HEADER`."""
    return row.meaning, row.proxy, _interval(row.overall, "samples"), _interval(row.like, "sets")


def _interval(found: Correlation, unit: str) -> str:
    if math.isnan(found.rho):
        return "-"
    return f"{found.rho:+.2f} ({found.low:+.2f} to {found.high:+.2f}, {found.samples} {unit})"


def plot_correlation(path: Path, title: str, rows: Sequence[Row], samples: Sequence[Point]) -> None:
    """One panel a score: every sample's score against its measured loss, coloured by the heads that are left.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    counts = sorted({sample.kv_heads for sample in samples})
    with figure(path, columns=min(3, len(rows)), rows=-(-len(rows) // 3), size=(6.0, 3.4)) as axes:
        panels = [panel for line in axes for panel in line] if len(rows) > 3 else list(axes)
        for panel, row in zip(panels, rows, strict=False):
            for index, count in enumerate(counts):
                here = [sample for sample in samples if sample.kv_heads == count]
                panel.scatter(
                    [sample.proxies[row.proxy] for sample in here],
                    [max(sample.loss, 1e-6) for sample in here],
                    s=11,
                    alpha=0.7,
                    color=COLOURS[index % len(COLOURS)],
                    label=f"{count} head{'s' if count > 1 else ''}",
                )
            panel.set_yscale("log")
            rho = f"ρ = {row.overall.rho:.2f} overall, {row.like.rho:.2f} among like"
            axes_of(panel, f"{row.meaning}\n{rho}", "score", "KL of this layer alone")
        panels[0].legend(frameon=False, fontsize=7)
        panels[0].figure.suptitle(title)
