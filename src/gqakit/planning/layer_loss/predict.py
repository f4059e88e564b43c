"""The loss of converting one layer alone, predicted from gradients: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gqakit.calibration.store import StatisticsFile
from gqakit.core.gradients import key_loss, merging_loss, value_loss
from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES
from gqakit.core.merging.base import MergeRule
from gqakit.core.statistics import HeadStats
from gqakit.errors import PlanError
from gqakit.planning.candidates import EntryCandidates
from gqakit.planning.layer_features import LayerFeatures, LayerReader, Side


@dataclass(frozen=True)
class Prediction:
    """What candidates lose, to second order: `KL(source ‖ model)` when nothing else is converted, or a squared error.

    Attributes:
        statistics: with gradients.
        merge: name of the merge rule.
    """

    statistics: StatisticsFile
    merge: str

    def __call__(
        self, candidates: Sequence[EntryCandidates], read: LayerReader
    ) -> Sequence[Mapping[int, float]]:
        """What each candidate of each entry loses.

        Raises:
            PlanError: the statistics have no gradients of a layer.
        """
        found: list[dict[int, float]] = []
        layer: LayerLoss | None = None
        for entry in candidates:  # those of one layer follow each other
            if layer is None or layer.index != entry.layer:
                layer = self.of_layer(entry.layer, read)
            found.append({n: layer(entry.side, c.partition) for n, c in entry.by_count.items()})
        return found

    def of_layer(self, layer: int, read: LayerReader) -> LayerLoss:
        """Predicts what groupings of one layer lose."""
        spec = read.source.spec
        gradients = self.statistics.gradients(spec.key(layer))
        if gradients is None:
            raise PlanError(
                f"statistics {self.statistics.path} have no gradients of layer {spec.name(layer)}, so what it loses cannot "
                "be predicted; run `gqakit calibrate` again, or choose `layer_loss=measured`"
            )
        features = read(layer)
        return LayerLoss(
            layer,
            features,
            key_loss(features.key, gradients),
            value_loss(features.value, gradients),
            RULES[self.merge],
        )


@dataclass(frozen=True)
class LayerLoss:
    """One layer: what merge rules work on, and what their errors cost. Losses of keys and of values add up."""

    index: int
    features: LayerFeatures
    key: HeadStats
    value: HeadStats
    rule: MergeRule

    def __call__(self, side: Side, partition: Partition) -> float:
        """What a grouping of the layer loses."""
        parts = {"both": ("key", "value"), "key": ("key",), "value": ("value",)}[side]
        return sum(
            merging_loss(getattr(self, part), getattr(self.features, part), partition, self.rule)
            for part in parts
        )
