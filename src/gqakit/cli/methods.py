"""`gqakit methods`."""

from __future__ import annotations

from gqakit.cli.console import Screen
from gqakit.cli.options import Json


def command(as_json: Json = False) -> None:
    """List the grouping methods, merge rules and allocations."""
    screen = Screen(as_json=as_json)
    from gqakit.catalogue import catalogue

    entries = catalogue()
    if as_json:
        screen.json(entries)
        return
    titles = {
        "method": "Grouping methods (--method)",
        "merge": "Merge rules (--merge)",
        "allocation": "Allocations (--allocation)",
    }
    for kind, title in titles.items():
        rows = [(e["name"], e["needs"], e["summary"], e["source"]) for e in entries if e["kind"] == kind]
        screen.table(title, ("name", "needs", "what", "source"), rows)
