"""`gqakit repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.command import command
from gqakit.cli.console import Screen
from gqakit.recovery.repair.options import RepairOptions


@command(
    RepairOptions,
    examples=(
        "repair CONVERTED --source MODEL --text my.txt",
        "repair CONVERTED --source MODEL -o repaired --steps 320",
        "repair CONVERTED --source WHISPER --audio recordings --stacks decoder,cross",
    ),
    resumes="the same command continues behind the last layer that was done",
)
def repair(
    screen: Screen,
    converted: Annotated[
        str, typer.Argument(help="Directory of a conversion; it stays as it is.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The directory to write. Default: CONVERTED-repaired.", show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    *,
    options: RepairOptions,
) -> None:  # fmt: skip
    """Fit a conversion's attention to the source's, layer by layer, on some data: minutes, no end-to-end training.

    Interrupted, the same command continues behind the last layer that was done.
    """
    from gqakit.recovery.repair.repair import repair
    from gqakit.recovery.repair.summary import summary

    result = repair(converted, output, options=options, progress=screen.progress)
    if screen.as_json:
        screen.json(result)
        return
    rows = [("layers", summary(result.layers)), ("written", str(result.out))]
    if result.resumed:
        rows.insert(0, ("continued", f"behind {result.resumed} layers of an earlier run"))
    screen.table("Repaired", ("", ""), rows)
    if result.evaluation:
        from gqakit.evaluation.table import header

        screen.table("Measured", header(result.evaluation), [row.cells() for row in result.evaluation])
