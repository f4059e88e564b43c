"""What can be asked for by name; the command line and the docs both read it here."""

from __future__ import annotations

from gqakit.allocation import ALLOCATIONS
from gqakit.core.merging import RULES
from gqakit.methods import METHODS


def catalogue() -> list[dict[str, str]]:
    """Every grouping method, merge rule and allocation: kind, name, needs, source, summary."""
    registries = (("method", METHODS), ("merge", RULES), ("allocation", ALLOCATIONS))
    return [
        {"kind": kind, "name": e.name, "needs": e.needs, "source": e.source, "summary": e.summary}
        for kind, registry in registries
        for e in registry.values()
    ]
