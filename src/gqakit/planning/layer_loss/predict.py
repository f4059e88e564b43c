"""The loss of converting one layer alone, predicted from gradients: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from gqakit.calibration.store import StatisticsFile
from gqakit.core.gradients import key_loss, merging_loss, value_loss
from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES
from gqakit.core.merging.base import Group, MergeRule
from gqakit.core.statistics import HeadStats
from gqakit.errors import PlanError
from gqakit.planning.candidates import EntryCandidates, Settled
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
        """What each candidate of each entry loses; layers are read only where that was not settled before.

        Raises:
            PlanError: the statistics have no gradients of a layer.
        """
        return [
            {n: c.settled.loss for n, c in entry.by_count.items() if c.settled is not None}
            for entry in self.settled(candidates, read)
        ]

    def settled(self, candidates: Sequence[EntryCandidates], read: LayerReader) -> list[EntryCandidates]:
        """The candidates with what their merges come to; those of one layer follow each other.

        Raises:
            PlanError: the statistics have no gradients of a layer.
        """
        found: list[EntryCandidates] = []
        layer: LayerLoss | None = None
        for entry in candidates:
            by_count = dict(entry.by_count)
            for count, candidate in by_count.items():
                if candidate.settled is not None:
                    continue
                if layer is None or layer.index != entry.layer:
                    layer = self.of_layer(entry.layer, read)
                by_count[count] = replace(candidate, settled=layer.settled(entry.side, candidate.partition))
            found.append(replace(entry, by_count=by_count))
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
    _known: dict[tuple[str, Group], tuple[float, float]] = field(default_factory=dict)

    def __call__(self, side: Side, partition: Partition) -> float:
        """What a grouping of the layer loses."""
        return self.settled(side, partition).loss

    def settled(self, side: Side, partition: Partition) -> Settled:
        """What a grouping of the layer loses, and its errors."""
        parts = ("key", "value") if side == "both" else (side,)
        losses, errors = 0.0, {"key": 0.0, "value": 0.0}
        for part in parts:
            of_groups = [self._of_group(part, group) for group in partition.groups]
            losses += sum(loss for loss, _ in of_groups)
            errors[part] = sum(error for _, error in of_groups) / self._energy[part]
        return Settled(losses, errors["key"], errors["value"])

    def _of_group(self, part: str, group: Group) -> tuple[float, float]:
        """Loss and error of one group, which numbers of heads have in common."""
        if (part, group) not in self._known:
            loss, stats = getattr(self, part), getattr(self.features, part)
            self._known[part, group] = merging_loss(loss, stats, group, self.rule)
        return self._known[part, group]

    @cached_property
    def _energy(self) -> dict[str, float]:
        sides = {"key": self.features.key, "value": self.features.value}
        return {part: max(float(stats.energy().sum()), 1e-30) for part, stats in sides.items()}
