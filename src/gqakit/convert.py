"""Plan + Checkpoint → Checkpoint. It decides nothing and knows no planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint, Replacement, WriteResult, check_output, write_checkpoint
from gqakit.core.apply import apply_grouping
from gqakit.core.merging import RULES
from gqakit.core.moments import LayerMoments, key_stats, value_stats
from gqakit.errors import PlanError
from gqakit.families import ModelSpec, read_layer, tensors_of_layer
from gqakit.plan import Plan
from gqakit.runtime import grouped_config, shipped_code

PLAN_FILE = "gqakit-plan.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class Conversion:
    """One conversion, ready to run: what it reads and what it will write.

    Attributes:
        source, spec: the checkpoint and its description.
        plan: made for it.
        moments: the ones the plan names; None for a weights-only plan.
    """

    source: Checkpoint
    spec: ModelSpec
    plan: Plan
    moments: MomentsFile | None

    def __post_init__(self) -> None:
        self.plan.check_source(self.source.fingerprint(), str(self.source.path))
        _check_moments(self.plan, self.moments)

    def config(self) -> dict[str, Any]:
        """The new `config.json`, with nothing changed that need not."""
        if self.plan.format == "uniform":
            kept = self.plan.groupings[0].key.num_groups
            return {**self.source.config, self.spec.family.num_kv_heads: kept}
        maps = [grouping.query_maps(self.spec.num_heads) for grouping in self.plan.groupings]
        return grouped_config(self.source.config, maps)

    def replacements(self) -> dict[str, Replacement]:
        """Every tensor that changes, with its new shape; a layer is computed when its first tensor is due."""

        @lru_cache(maxsize=2)  # tensors of a layer lie together, but two layers may be interleaved in a shard
        def converted(layer: int) -> dict[str, Tensor]:
            return self._convert_layer(layer)

        replaced: dict[str, Replacement] = {}
        for layer, grouping in enumerate(self.plan.groupings):
            if grouping.is_identity:
                continue
            for name, shape in self._new_shapes(layer).items():
                produce = _Produce(converted, layer, name)
                replaced[name] = Replacement(shape=shape, dtype=None, produce=produce)
        return replaced

    def write(
        self,
        out: Path,
        card: str,
        *,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> WriteResult:
        """Write the converted checkpoint, tensor by tensor; run again after an interruption, it goes on.

        Args:
            out: the new directory.
            card: text of its model card.
            overwrite: replace a checkpoint that is there.
            progress: called with the number of bytes just written.

        Raises:
            OutputError, CheckpointError: see `gqakit.checkpoint.write_checkpoint`.
        """
        extra = {PLAN_FILE: self.plan.to_json().encode(), CARD_FILE: card.encode()}
        if self.plan.format == "grouped":
            extra |= shipped_code()
        return write_checkpoint(
            self.source,
            out,
            replaced=self.replacements(),
            config=self.config(),
            extra_files=extra,
            job=self._job(),
            overwrite=overwrite,
            progress=progress,
        )

    def check_output(self, out: Path, *, overwrite: bool = False) -> None:
        """Raise `OutputError` unless `write` could start there."""
        check_output(self.source, out, overwrite, job=self._job())

    def _job(self) -> Mapping[str, Any]:
        return {"plan": self.plan.fingerprint}

    def _new_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        family, spec = self.spec.family, self.spec
        grouping = self.plan.groupings[layer]
        rows = {
            family.query: spec.num_heads * spec.head_dim,
            family.key: grouping.key.num_groups * spec.head_dim,
            family.value: grouping.value.num_groups * spec.head_dim,
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for projection, count in rows.items():
            shapes[family.weight(layer, projection)] = (count, spec.hidden_size)
            if projection in spec.biased:
                shapes[family.bias(layer, projection)] = (count,)
        output = family.weight(layer, family.output)
        shapes[output] = self.source.info(output).shape
        return shapes

    def _convert_layer(self, layer: int) -> dict[str, Tensor]:
        weights = read_layer(self.spec, layer, self.source.load)
        moments = self.moments.layer(layer) if self.moments else LayerMoments.identity(self.spec.hidden_size)
        converted = apply_grouping(
            weights,
            self.plan.groupings[layer],
            key_stats(weights, moments, self.spec.channels),
            value_stats(weights, moments),
            RULES[self.plan.merging.key],
            RULES[self.plan.merging.value],
        )
        return tensors_of_layer(self.spec, layer, converted)


@dataclass(frozen=True)
class _Produce:
    """One tensor of a layer, taken out of the layer's results when the writer asks for it."""

    converted: Callable[[int], dict[str, Tensor]]
    layer: int
    name: str

    def __call__(self) -> Tensor:
        return self.converted(self.layer)[self.name]


def _check_moments(plan: Plan, moments: MomentsFile | None) -> None:
    if plan.moments is None:
        return
    if moments is None:
        raise PlanError(
            f"the plan rests on moments ({plan.moments.path}, {plan.moments.fingerprint[:19]}…); give them with --moments"
        )
    if moments.fingerprint != plan.moments.fingerprint:
        raise PlanError(
            f"the plan rests on moments {plan.moments.fingerprint[:19]}…, {moments.path} has "
            f"{moments.fingerprint[:19]}…; give the same moments or make the plan anew"
        )
