"""`inspect` and `methods`: what there is."""

from __future__ import annotations

from typing import Any

from gqakit.allocation import ALLOCATIONS
from gqakit.core.merging import RULES
from gqakit.inspection import Inspection, inspect_checkpoint, open_model
from gqakit.methods import METHODS


def inspect(model: str) -> Inspection:
    """What a checkpoint is, what its cache takes, and which formats and budgets can be reached.

    Raises:
        CheckpointError, FamilyError: when it cannot be read or is not known.
    """
    return inspect_checkpoint(*open_model(model))


def methods() -> list[dict[str, str]]:
    """Every grouping method, merge rule and allocation: kind, name, needs, source, summary."""
    registries: tuple[tuple[str, dict[str, Any]], ...] = (
        ("method", METHODS),
        ("merge", RULES),
        ("allocation", ALLOCATIONS),
    )
    return [
        {
            "kind": kind,
            "name": entry.name,
            "needs": getattr(entry, "needs", "moments" if entry.name == "fold" else "weights"),
            "source": entry.source,
            "summary": entry.summary,
        }
        for kind, registry in registries
        for entry in registry.values()
    ]
