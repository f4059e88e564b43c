"""`gqakit demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.command import command
from gqakit.cli.console import Screen

Folder = Annotated[Path, typer.Option("--output", "-o", help="Directory for what it makes.")]


@command(None, examples=("demo",), resumes="run it again")
def demo(screen: Screen, output: Folder = Path("demo-out")) -> None:
    """Shrink the KV cache of a real pretrained model (SmolLM2-135M, 93 MB from PyPI) and show what it cost."""
    from gqakit.demonstration.demo import demo
    from gqakit.evaluation.table import header

    shown = demo(output, progress=screen.progress)
    if screen.as_json:
        screen.json(shown)
        return
    title = f"SmolLM2-135M-Instruct, held-out text, {shown.rows[0].sample(512)}, no training"
    screen.table(title, header(shown.rows), [row.cells() for row in shown.rows])
    screen.line(f'\nPrompt: "{shown.prompt}"')
    for name, text in shown.continuations.items():
        screen.line(f"\n[{name}]\n{' '.join(text.split())}")
    screen.line(f"\nsource model: {shown.model}\nbest checkpoint: {shown.kept}\nplot: {shown.plot}")
    screen.line(f'Next: gqakit generate {shown.kept} "Once upon a time"')
