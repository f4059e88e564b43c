"""What it costs to merge keys before their normalisation, as stock code needs it, against merging them behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from gqakit.core.merging import RULES
from gqakit.core.merging.base import MergeRule
from gqakit.planning.layer_features import LayerFeatures
from gqakit.planning.plan import LayerPlan


class KeyErrors(NamedTuple):
    """The error of keys relative to losing them all, mean over the layers that merge any."""

    before: float
    behind: float

    def __str__(self) -> str:
        return (
            f"with these groups, so at the same bytes, keys lose an estimated {self.before:.3g} of what losing them all "
            f"would cost, and {self.behind:.3g} behind their normalisation (mean over layers)"
        )


def key_errors(
    layers: Sequence[LayerPlan], read: Callable[[int], LayerFeatures], rule: MergeRule
) -> KeyErrors | None:
    """Both errors for the groups of a plan, in the one measure that compares them: of keys as they leave the normalisation.

    What stock code makes of merged keys is there their mean with its length restored, so `mean_norm` stands for it: an
    estimate, as the normalisation restores the length of each token and these statistics only of their mean.

    Args:
        layers: the plan's.
        read: gives a layer, with calibration statistics of normalised keys.
        rule: what would merge keys behind the normalisation.
    """
    found: list[tuple[float, float]] = []
    for layer, planned in enumerate(layers):
        partition = planned.grouping.key
        if partition.is_identity:
            continue
        heads = replace(read(layer), behind_norm=True).key
        whole = max(float(heads.energy().sum()), 1e-30)
        groups = [heads.select(group) for group in partition.groups]
        mean, other = (sum(each.error(g) for g in groups) / whole for each in (RULES["mean_norm"], rule))
        found.append((mean, other))
    if not found:
        return None
    before, behind = (sum(values) / len(found) for values in zip(*found, strict=True))
    return KeyErrors(before, behind)
