"""`gqakit calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.calibration.options import CalibrateOptions
from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen

File = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="The statistics file to write (.safetensors).", show_default=False,
        rich_help_panel="Output",
    ),
]  # fmt: skip


@command(
    CalibrateOptions,
    examples=(
        "calibrate MODEL --text my.txt -o statistics.safetensors",
        "calibrate VIT --images FOLDER -o statistics.safetensors",
    ),
)
def calibrate(screen: Screen, model: Model, output: File, options: CalibrateOptions) -> None:
    """Run the model over some data once and keep the statistics that every method works from."""
    from gqakit.calibration.calibrate import calibrate
    from gqakit.models.source import Source

    made = calibrate(model, output, options=options, progress=screen.progress)
    if screen.as_json:
        screen.json({"path": str(made.path), "fingerprint": made.fingerprint, **made.header.model_dump()})
        return
    head, unit = made.header, Source.open(model).spec.family.unit
    screen.line(
        f"{made.path}: statistics of {head.num_layers} layers over {head.tokens:,} {unit} of {head.text}"
    )
