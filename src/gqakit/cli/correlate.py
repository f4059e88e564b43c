"""`gqakit correlate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.console import Screen
from gqakit.cli.options import (
    Dataset,
    DatasetColumn,
    DatasetSplit,
    Device,
    Json,
    Model,
    Quiet,
    Seed,
    Text,
    Verbose,
    Window,
    data_source,
)


def command(
    model: Model,
    moments: Annotated[Path, typer.Option(help="Moments made by `gqakit calibrate`.", show_default=False)],
    merge: Annotated[str, typer.Option(help="The merge rule.")] = "fold",
    kv_heads: Annotated[
        list[int] | None,
        typer.Option(help="Group to so many heads; may be repeated. Default: every number."),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="So many layers, evenly spaced.")] = 8,
    samples: Annotated[
        int,
        typer.Option(min=0, help="Random groupings for each layer and number, besides the searched ones."),
    ] = 8,
    losses: Annotated[
        Path | None, typer.Option(help="File of measured losses; what it holds is not measured again.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the samples, as an image.")] = None,
    measure_tokens: Annotated[int, typer.Option(help="Measure on at most so many tokens.")] = 1536,
    workers: Annotated[int, typer.Option(min=1, help="Processes that measure, each with the model.")] = 1,
    text: Text = None,
    dataset: Dataset = None,
    dataset_split: DatasetSplit = "train",
    dataset_column: DatasetColumn = "text",
    window: Window = 512,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ask whether the scores that methods keep small say anything about what a grouping costs this model.

    Converts one layer at a time to random and searched groupings, measures the divergence of the model's output, and
    prints the rank correlation of each score with it.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.api import MeasureOptions, correlate

    found = correlate(
        model,
        moments=moments,
        merge=merge,
        kv_heads=kv_heads or (),
        layers=layers,
        samples=samples,
        seed=seed,
        measure=MeasureOptions(
            data_source(text, dataset, dataset_split, dataset_column, "calibration"),
            tokens=measure_tokens,
            window=window,
            losses=losses,
            workers=workers,
            device=device,
        ),
        progress=screen.progress,
    )
    if plot is not None:
        from gqakit.report.correlation import plot_correlation

        plot_correlation(plot, f"{Path(model).name}, merge rule {merge}", found.rows, found.samples)
    if as_json:
        screen.json(found)
        return
    from gqakit.report.correlation import HEADER, cells

    title = (
        f"Scores against measured loss, {len(found.samples)} groupings of single layers, merge rule {merge}"
    )
    screen.table(title, HEADER, [cells(row) for row in found.rows])
    if plot is not None:
        screen.line(f"plot written to {plot}")
