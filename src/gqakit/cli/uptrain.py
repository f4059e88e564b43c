"""`gqakit uptrain`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.console import Screen, interruptible
from gqakit.cli.option_fields import takes_fields
from gqakit.cli.options import (
    Dataset,
    DatasetColumn,
    DatasetSplit,
    Device,
    Json,
    Model,
    Quiet,
    Text,
    Verbose,
    data_source,
)
from gqakit.recovery.distil.options import UptrainOptions


@takes_fields(UptrainOptions)
def command(
    model: Model,
    options: UptrainOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The directory to write.", show_default=False)
    ],
    teacher: Annotated[
        str | None,
        typer.Option(help="The model to learn from, usually the one before conversion.", show_default=False),
    ] = None,
    text: Text = None,
    dataset: Dataset = None,
    dataset_split: DatasetSplit = "train",
    dataset_column: DatasetColumn = "text",
    device: Device = "auto",
    log: Annotated[
        list[str] | None, typer.Option(help="Also log to tensorboard, wandb or trackio; may be repeated.")
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart/--resume",
            help="Begin anew, or go on where an interrupted run was saved (the default).",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint in the output directory.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a converted checkpoint towards its teacher (or on text alone) and write the best weights as a checkpoint.

    Interrupted, the same command goes on where it was saved. Under `accelerate launch -m gqakit uptrain …` it runs on
    several devices.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    source = data_source(text, dataset, dataset_split, dataset_column, "calibration")
    from gqakit.evaluation.table import number
    from gqakit.recovery.distil.uptrain import uptrain

    def notice(step: int, scores: Mapping[str, float]) -> None:
        told = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
        screen.remark(f"step {step:,}, held out: {told}")

    with interruptible(screen, f"; the same command goes on where it was saved ({output})"):
        result = uptrain(
            model,
            output,
            teacher=teacher,
            text=source,
            options=options,
            device=device,
            trackers=log or (),
            restart=restart,
            overwrite=overwrite,
            progress=screen.progress,
            notice=notice,
        )
    if not result.main:
        return
    if result.step and not result.best_step:
        screen.remark(
            "No step did better than the start on what is held out, so the weights are as they were; "
            f"a --learning-rate below {options.learning_rate:g}, more steps or more text may help."
        )
    if as_json:
        screen.json(result)
        return
    rows = [(name, number(result.before[name]), number(value)) for name, value in result.after.items()]
    early = ", stopped early" if result.stopped_early else ""
    title = (
        f"Uptrained: {result.step:,} steps{early}, {result.tokens:,} tokens; the best, after step "
        f"{result.best_step:,}, is in {output}"
    )
    screen.table(title, ("held out", "before", "after"), rows)
