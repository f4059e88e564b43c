"""What a repair did, in words."""

from __future__ import annotations

from collections.abc import Sequence

from gqakit.recovery.repair.layers import LayerRepair


def summary(layers: Sequence[LayerRepair]) -> str:
    """How many layers changed, and the mean held-out error over all layers before and after each one's fit."""
    changed = sum(layer.repaired for layer in layers)
    before, after = (
        sum(getattr(layer, name) for layer in layers) / len(layers)
        for name in ("error_before", "error_after")
    )
    return f"{changed} of {len(layers)} changed; held-out error {before:.3g} → {after:.3g}"
