"""The merge rules by name. A new rule is one file and one entry here."""

from __future__ import annotations

from gqakit.core.merging.aligned import Aligned, AlignedNorm
from gqakit.core.merging.base import GroupCosts, HeadMerge, MergeRule, residual
from gqakit.core.merging.fold import Fold
from gqakit.core.merging.mean import Mean, MeanNorm
from gqakit.core.merging.medoid import Medoid

RULES: dict[str, MergeRule] = {
    rule.name: rule for rule in (Fold(), Aligned(), AlignedNorm(), Mean(), MeanNorm(), Medoid())
}

__all__ = ["RULES", "GroupCosts", "HeadMerge", "MergeRule", "residual"]
