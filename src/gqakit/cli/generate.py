"""`gqakit generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.models.generate import GenerateOptions


@command(
    GenerateOptions,
    examples=('generate CONVERTED "The capital of France is"', 'generate CONVERTED "Who are you?" --chat'),
)
def generate(
    screen: Screen,
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to continue.", show_default=False)],
    options: GenerateOptions,
) -> None:
    """Continue a prompt with a checkpoint, source or converted."""
    from gqakit.models.generate import generate

    text = generate(model, prompt, options=options)
    if screen.as_json:
        screen.json({"prompt": prompt, "continuation": text})
    else:
        screen.line(text)
