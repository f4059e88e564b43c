"""`gqakit correlate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.planning.correlation.options import CorrelateOptions


@command(
    CorrelateOptions,
    examples=(
        "correlate MODEL --statistics statistics.safetensors --text my.txt",
        "correlate MODEL --statistics statistics.safetensors --layers 4 --plot scores.png",
    ),
    resumes="with --losses the same command goes on",
)
def correlate(
    screen: Screen,
    model: Model,
    options: CorrelateOptions,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the samples, as an image.", rich_help_panel="Output")
    ] = None,
) -> None:
    """Ask whether the scores that methods keep small say anything about what a grouping costs this model.

    Converts one layer at a time to random and searched groupings, measures how far the model's output moves, and prints the
    rank correlation of each score with that, and what the grouping of the lowest score loses against the average one.
    """
    from gqakit.planning.correlation.correlate import correlate
    from gqakit.planning.correlation.report import HEADER, lines, plot_correlation

    found = correlate(model, options=options, progress=screen.progress)
    if screen.as_json:
        screen.json(found)
    else:
        title = (
            f"Scores against measured loss ({found.loss}), {len(found.samples)} groupings of single layers, "
            f"merge rule {found.merge}"
        )
        screen.table(title, HEADER, lines(found.rows, found.best))
    if plot is not None:  # last: without matplotlib nothing is lost
        name = Path(model).name
        plot_correlation(plot, f"{name}, merge rule {found.merge}", found, f"gqakit correlate {name}")
        screen.remark(f"plot written to {plot}")
