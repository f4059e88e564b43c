"""`gqakit families`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.command import command
from gqakit.cli.console import Screen

Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables, as the docs hold them.")]


@command(None)
def families(screen: Screen, as_markdown: Markdown = False) -> None:
    """List the model families that can be converted, and what each can reach."""
    from gqakit.models.families.table import HEADER, families, markdown, rows

    if screen.as_json:
        screen.json(families())
    elif as_markdown:
        print(markdown(), end="")
    else:
        shown = [
            index for index, name in enumerate(HEADER) if name not in ("q, k, v", "grouped runs on")
        ]  # are in the docs' table
        table = [[row[index] for index in shown] for row in (HEADER, *rows())]
        screen.table("Families", table[0], table[1:])
