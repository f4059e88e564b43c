"""The merge rules by name. A new rule is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqakit.core.registry import Registry

if TYPE_CHECKING:
    from gqakit.core.merging.base import MergeRule

RULES: Registry[MergeRule] = Registry(
    {
        "fold": "gqakit.core.merging.fold:Fold",
        "aligned": "gqakit.core.merging.aligned:Aligned",
        "aligned_norm": "gqakit.core.merging.aligned:AlignedNorm",
        "mean": "gqakit.core.merging.mean:Mean",
        "mean_norm": "gqakit.core.merging.mean:MeanNorm",
        "medoid": "gqakit.core.merging.medoid:Medoid",
    }
)
