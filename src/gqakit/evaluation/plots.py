"""Plots. They need the `plot` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gqakit.evaluation.drawing import INK, axes_of, colours_of, figure
from gqakit.evaluation.table import EvaluationRow


def plot_quality(
    path: Path,
    title: str,
    source: EvaluationRow,
    series: Mapping[str, Sequence[EvaluationRow]],
    made_by: str = "",
) -> None:
    """Perplexity against KV bytes per token, one line a way of converting, saved as an image.

    Args:
        path: where; the ending decides the format.
        title: above the plot.
        source: the model before conversion, drawn as a level.
        series: results by name, any order.
        made_by: the line below that says what the figures come from.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    with figure(path, made_by=made_by) as axes:
        _quality(axes, title, source, series)


def _quality(
    axes: Any, title: str, source: EvaluationRow, series: Mapping[str, Sequence[EvaluationRow]]
) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.axhline(source.perplexity, color=INK, linewidth=1, linestyle=":")
    axes.plot(source.kv_bytes_per_token / 1024, source.perplexity, "o", color=INK)
    axes.annotate(
        f"original {source.perplexity:.3g}",
        (source.kv_bytes_per_token / 1024, source.perplexity),
        textcoords="offset points",
        xytext=(-6, 9),
        ha="right",
    )
    for name, colour in colours_of(list(series)).items():
        rows = series[name]
        ordered = sorted(rows, key=lambda row: row.kv_bytes_per_token)
        x = [row.kv_bytes_per_token / 1024 for row in ordered]
        y = [row.perplexity for row in ordered]
        axes.plot(x, y, "o-", label=name, color=colour)
        for at, value in zip(x, y, strict=True):
            axes.annotate(
                f"{value:,.3g}" if value < 1000 else f"{value:,.0f}",
                (at, value),
                textcoords="offset points",
                xytext=(7, 5),
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(left=0, right=source.kv_bytes_per_token / 1024 * 1.15)
    axes_of(axes, title, "KV cache per token (KiB)", "perplexity (log scale, lower is better)")
    axes.legend(frameon=False)
