"""`gqakit families`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.console import Screen
from gqakit.cli.options import Json


def command(
    as_json: Json = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, as in docs/families.md.")
    ] = False,
) -> None:
    """List the model families that can be converted, and what each can reach."""
    screen = Screen(as_json=as_json)
    from gqakit.models.families.table import HEADER, families, markdown, rows

    if as_json:
        screen.json(families())
    elif as_markdown:
        print(markdown(), end="")
    else:
        screen.table("Families", HEADER, rows())
