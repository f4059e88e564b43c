"""`gqakit methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.console import Screen
from gqakit.cli.options import Json


def command(
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """List the grouping methods, merge rules and allocations; docs/methods.md explains each."""
    screen = Screen(as_json=as_json)
    from gqakit.planning.catalogue import HEADER, TITLES, catalogue, markdown, rows

    if as_json:
        screen.json(catalogue())
    elif as_markdown:
        print(markdown(), end="")
    else:
        for kind, title in TITLES.items():
            screen.table(title, HEADER, rows(kind))
