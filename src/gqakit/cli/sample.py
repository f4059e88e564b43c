"""`gqakit sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.models.sample import SampleOptions

File = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="The text file to write.", show_default=False, rich_help_panel="Output"
    ),
]


@command(SampleOptions, examples=("sample MODEL -o own.txt", "sample MODEL --chat --tokens 50000 -o own.txt"))
def sample(screen: Screen, model: Model, output: File, options: SampleOptions) -> None:
    """Let a language model write text to calibrate on, where there is none like what it is used for."""
    from gqakit.models.sample import sample

    made = sample(model, output, options=options, progress=screen.progress)
    length = len(made.read_text("utf-8"))
    if screen.as_json:
        screen.json({"path": str(made), "characters": length})
    else:
        screen.line(f"{made}: {length:,} characters; give it as --text {made}")
