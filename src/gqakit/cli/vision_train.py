"""`gqakit vision-train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.console import Screen, interruptible
from gqakit.cli.option_fields import takes_fields
from gqakit.cli.options import Device, Json, Model, Quiet, Verbose
from gqakit.key_driven.options import VisionOptions


@takes_fields(VisionOptions)
def command(
    model: Model,
    options: VisionOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The directory to write.", show_default=False)
    ],
    images: Annotated[
        Path,
        typer.Option(
            help="An .npz with images and labels, or a folder with a folder of images for each class.",
            show_default=False,
        ),
    ],
    test_images: Annotated[
        Path | None,
        typer.Option(help="The same, to evaluate on. Default: some of --images.", show_default=False),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The model that MODEL was made of, where that is a conversion.", show_default=False
        ),
    ] = None,
    device: Device = "auto",
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
    """Convert a ViT or DINOv2, train it towards its source's features, then on classes, and evaluate it.

    With a key-driven method, query heads are shared out over KV heads by the norms of their keys while it trains; what is
    written is an ordinary grouped checkpoint. Interrupted, the same command goes on where it was saved.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.evaluation.table import number
    from gqakit.key_driven.train import vision_train

    def notice(phase: str, step: int, scores: Mapping[str, float]) -> None:
        told = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
        screen.remark(f"{phase}, step {step:,}, held out: {told}")

    with interruptible(screen, f"; the same command goes on where it was saved ({output})"):
        result = vision_train(
            model,
            output,
            images=images,
            test_images=test_images,
            teacher=teacher,
            options=options,
            device=device,
            restart=restart,
            overwrite=overwrite,
            progress=screen.progress,
            notice=notice,
        )
    if as_json:
        screen.json(result)
        return
    rows = [("accuracy", f"{result.accuracy:.1%}"), ("cross-entropy", number(result.loss))]
    if result.in_training["accuracy"] != result.accuracy:
        rows.append(("accuracy as in training", f"{result.in_training['accuracy']:.1%}"))
    if result.features:
        rows.append(("distance from the source's features", " → ".join(map(number, result.features))))
    screen.table(
        f"{result.method}: {result.held_out_images:,} images not trained on; {output}", ("", ""), rows
    )
    layers = [(str(layer), " ".join(map(str, each))) for layer, each in enumerate(result.allocation)]
    screen.table("Query heads that read each KV head", ("layer", "query heads"), layers)
