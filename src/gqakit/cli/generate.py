"""`gqakit generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.console import Screen
from gqakit.cli.options import Device, Dtype, Json, Model, Seed, Verbose


def command(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to continue.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most likely token each time.")
    ] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt as a user's message.")] = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Continue a prompt with a checkpoint, source or converted."""
    screen = Screen(as_json=as_json, verbose=verbose)
    from gqakit.models.generate import generate

    text = generate(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
        dtype=dtype,
        device=device,
    )
    if as_json:
        screen.json({"prompt": prompt, "continuation": text})
    else:
        screen.line(text)
