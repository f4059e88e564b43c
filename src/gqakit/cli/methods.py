"""`gqakit methods`."""

from __future__ import annotations

from gqakit.cli.command import command
from gqakit.cli.console import Screen
from gqakit.cli.families import Markdown


@command(None)
def methods(screen: Screen, as_markdown: Markdown = False) -> None:
    """List the grouping methods, merge rules and allocations; docs/methods.md explains each."""
    from gqakit.planning.catalogue import HEADER, TITLES, markdown, methods, rows

    if screen.as_json:
        screen.json(methods())
    elif as_markdown:
        print(markdown(), end="")
    else:
        for kind, title in TITLES.items():
            screen.table(title, HEADER, rows(kind))
