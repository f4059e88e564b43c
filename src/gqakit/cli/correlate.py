"""`gqakit correlate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.console import Screen, interruptible
from gqakit.cli.options import (
    Audio,
    Dataset,
    DatasetColumn,
    DatasetSplit,
    Device,
    Images,
    ImageSize,
    Json,
    Model,
    Quiet,
    Samples,
    Seed,
    Stacks,
    Text,
    Verbose,
    Window,
    data_source,
    names_of,
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
    random_groupings: Annotated[
        int,
        typer.Option(
            "--random", min=0, help="Random groupings for each layer and number, besides the searched ones."
        ),
    ] = 8,
    stacks: Stacks = None,
    losses: Annotated[
        Path | None, typer.Option(help="File of measured losses; what it holds is not measured again.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the samples, as an image.")] = None,
    measure_tokens: Annotated[int, typer.Option(help="Measure on at most so many tokens.")] = 1536,
    workers: Annotated[int, typer.Option(min=1, help="Processes that measure, each with the model.")] = 1,
    text: Text = None,
    images: Images = None,
    audio: Audio = None,
    samples: Samples = None,
    image_size: ImageSize = None,
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

    Converts one layer at a time to random and searched groupings, measures how far the model's output moves, and prints the
    rank correlation of each score with that, and what the grouping of the lowest score loses against the average one.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.planning.correlation.correlate import correlate
    from gqakit.planning.correlation.options import CorrelateOptions
    from gqakit.planning.make import MeasureOptions

    measure = MeasureOptions(
        data_source(
            text, dataset, dataset_split, dataset_column, "calibration", images, audio, samples, image_size
        ),
        tokens=measure_tokens,
        window=window,
        losses=losses,
        workers=workers,
        device=device,
    )
    kept = f"; what was measured is kept in {losses}, the same command goes on" if losses else ""
    with interruptible(screen, kept):
        found = correlate(
            model,
            CorrelateOptions(
                moments=moments,
                merge=merge,
                kv_heads=tuple(kv_heads or ()),
                layers=layers,
                random_groupings=random_groupings,
                stacks=names_of(stacks),
                seed=seed,
                measure=measure,
            ),
            screen.progress,
        )
    from gqakit.planning.correlation.report import HEADER, lines, plot_correlation

    if as_json:
        screen.json(found)
    else:
        title = (
            f"Scores against measured loss ({found.loss}), {len(found.samples)} groupings of single layers, "
            f"merge rule {merge}"
        )
        screen.table(title, HEADER, lines(found.rows, found.best))
    if plot is not None:  # last: without matplotlib nothing is lost
        plot_correlation(plot, f"{Path(model).name}, merge rule {merge}", found)
        if not as_json:
            screen.line(f"plot written to {plot}")
