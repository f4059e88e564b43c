"""`inspect` and `methods`: what there is."""

from __future__ import annotations

from gqakit.models.inspection import Inspection, inspect_checkpoint, open_model
from gqakit.planning.catalogue import catalogue


def inspect(model: str) -> Inspection:
    """What a checkpoint is, what its cache takes, and which formats and budgets can be reached.

    Raises:
        CheckpointError, FamilyError: when it cannot be read or is not known.
    """
    return inspect_checkpoint(*open_model(model))


def methods() -> list[dict[str, str]]:
    """Every grouping method, merge rule and allocation: kind, name, needs, source, summary."""
    return catalogue()
