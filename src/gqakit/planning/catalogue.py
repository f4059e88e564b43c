"""What can be asked for by name; the command line and the docs both read it here."""

from __future__ import annotations

from collections.abc import Sequence

from gqakit.core.merging import RULES
from gqakit.grouping_methods import METHODS
from gqakit.planning.allocation import ALLOCATIONS

TITLES = {
    "method": "Grouping methods (--method)",
    "merge": "Merge rules (--merge)",
    "allocation": "Allocations (--allocation)",
}
HEADER = ("name", "what", "needs", "formats", "source")


def methods() -> list[dict[str, str]]:
    """Every grouping method, merge rule and allocation: kind, name, needs, formats, source, summary."""
    registries = (("method", METHODS), ("merge", RULES), ("allocation", ALLOCATIONS))
    return [
        {
            "kind": kind,
            "name": e.name,
            "needs": e.needs,
            "formats": e.formats,
            "source": e.source,
            "summary": e.summary,
        }
        for kind, registry in registries
        for e in registry.values()
    ]


def rows(kind: str) -> list[tuple[str, ...]]:
    """The entries of one kind as cells, in the order of `HEADER`."""
    return [
        (e["name"], e["summary"], e["needs"], e["formats"], e["source"])
        for e in methods()
        if e["kind"] == kind
    ]


def markdown() -> str:
    """The catalogue as Markdown tables; `docs/methods.md` holds them."""
    parts: list[str] = []
    for kind, title in TITLES.items():
        table = [_line(HEADER), _line(["---"] * len(HEADER))]
        table += [_line((f"`{name}`", *others)) for name, *others in rows(kind)]
        parts.append("\n".join([f"**{title}**", "", *table]))
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
