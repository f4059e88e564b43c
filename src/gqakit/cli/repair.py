"""`gqakit repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.console import Screen, interruptible
from gqakit.cli.options import (
    Dataset,
    DatasetColumn,
    DatasetSplit,
    Device,
    Json,
    Quiet,
    Seed,
    Text,
    Tokens,
    Verbose,
    Window,
    data_source,
)


def command(
    converted: Annotated[
        str, typer.Argument(help="Directory of a conversion; it stays as it is.", show_default=False)
    ],
    source: Annotated[
        str, typer.Option(help="The model that it was made of: directory or hub name.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The directory to write. Default: CONVERTED-repaired.", show_default=False
        ),
    ] = None,
    text: Text = None,
    dataset: Dataset = None,
    dataset_split: DatasetSplit = "train",
    dataset_column: DatasetColumn = "text",
    tokens: Tokens = 32768,
    window: Window = 512,
    steps: Annotated[int, typer.Option(help="Steps in each layer, 512 tokens a step.")] = 160,
    learning_rate: Annotated[
        float, typer.Option(help="Of Adam, as a share of each tensor's root mean square.")
    ] = 0.025,
    seed: Seed = 0,
    device: Device = "auto",
    evaluate: Annotated[
        bool, typer.Option(help="Measure the loss before and after, and state it in the model card.")
    ] = True,
    evaluate_text: Annotated[
        list[str] | None,
        typer.Option(help="Text to measure on. Default: the held-out text that comes with gqakit."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint in the output directory.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit a conversion's attention to the source's, layer by layer, on some text: minutes, no end-to-end training.

    Interrupted, the same command goes on behind the last layer that was done.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    content = data_source(text, dataset, dataset_split, dataset_column, "calibration")
    from gqakit.recovery.repair.layers import RepairOptions
    from gqakit.recovery.repair.repair import repair

    with interruptible(screen, "; the same command goes on behind the last layer that was done"):
        result = repair(
            converted,
            output,
            source=source,
            text=content,
            options=RepairOptions(tokens, window, steps, learning_rate, seed),
            measure=evaluate,
            evaluate_on=evaluate_text or ["evaluation"],
            device=device,
            overwrite=overwrite,
            progress=screen.progress,
        )
    if as_json:
        screen.json(result)
        return
    from gqakit.recovery.repair.summary import summary

    rows = [("layers", summary(result.layers)), ("written", str(result.out))]
    if result.resumed:
        rows.insert(0, ("went on", f"behind {result.resumed} layers of an earlier run"))
    screen.table("Repaired", ("", ""), rows)
    if result.evaluation:
        from gqakit.evaluation.table import header

        screen.table("Measured", header(result.evaluation), [row.cells() for row in result.evaluation])
