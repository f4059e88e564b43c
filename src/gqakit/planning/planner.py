"""A model, its calibration statistics and a request become a Plan. Nothing is written here, and nothing converted."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gqakit import __version__
from gqakit.calibration.store import StatisticsFile
from gqakit.core.budget import CacheShape
from gqakit.core.grouping import Grouping
from gqakit.core.merging import RULES
from gqakit.core.merging.base import MergeRule
from gqakit.core.rope import Channels
from gqakit.core.rounding_basis import is_coarse
from gqakit.errors import PlanError
from gqakit.models.engine_caches import engine_of, serving
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.allocation.base import FrontPoint, LayerEntry, pick
from gqakit.planning.before_norm import KeyErrors, key_errors
from gqakit.planning.candidates import EntryCandidates, EntryShape
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.predict import Prediction
from gqakit.planning.layers import Chosen, LayerTask, look_at_layers, settled_layer
from gqakit.planning.plan import (
    BudgetRecord,
    CacheRecord,
    Constraints,
    Format,
    LayerPlan,
    Merging,
    Plan,
    PlanSource,
    StatisticsRecord,
    is_uniform,
)
from gqakit.planning.request import Request
from gqakit.planning.workers import each

Measure = Callable[[Sequence[EntryCandidates], LayerReader], Sequence[Mapping[int, float]]]
"""Gives, for each layer entry, what each of its numbers of heads loses when only that entry is converted."""


@dataclass(frozen=True)
class Planned:
    """A plan and what it was picked from: every entry's candidates, what was weighed, and the allocation's front."""

    plan: Plan
    candidates: tuple[EntryCandidates, ...]
    front: tuple[FrontPoint, ...]


def make_plan(
    source: Source,
    request: Request,
    statistics: StatisticsFile | None = None,
    progress: Callable[[], None] = lambda: None,
    measure: Measure | None = None,
    *,
    whole_front: bool = False,
) -> Planned:
    """Decide everything: how many heads each layer keeps, which share, how they merge.

    Reads one layer's attention weights at a time; small models stay in memory.

    Args:
        source: the model.
        request: made for it.
        statistics: the calibration; None for `C = I` (weights only).
        progress: called once per layer.
        measure: says what each candidate loses; needed where the request weighs predicted or measured losses.
        whole_front: look at every number of heads even where the budget alone decides.

    Raises:
        BudgetError: when no grouping within the constraints meets the budget.
        PlanError: when the statistics belong to another model, or scores or losses are not finite.
        UsageError: when the source is itself a grouped checkpoint.
    """
    source.check_not_grouped()
    if statistics is not None:
        statistics.check_source(source.fingerprint_like(statistics.header.fingerprint), str(source.path))
    work = _Work.of(source, request, statistics, progress)
    candidates, front, layers = _decide(work, measure, whole_front)
    errors = None
    if request.could_merge_behind_norm(statistics) and not work.read.behind_norm:
        errors = key_errors(layers, work.read, work.rule)
    plan = _record(source, request, statistics, layers, errors)
    return Planned(plan, tuple(candidates), tuple(front))


def time_of_layers(source: Source, request: Request, statistics: StatisticsFile | None) -> float:
    """Seconds that it will take to look at every layer for a plan, as the first takes.

    Args:
        source, request, statistics: see `make_plan`. Within `looking_once` the plan will not look at that layer again.
    """
    work = _Work.of(source, request, statistics)
    started = time.monotonic()
    for _ in look_at_layers(work.read, work.tasks(work.shapes(whole_front=False), compare=False)[:1], 1):
        pass
    return (time.monotonic() - started) * source.spec.num_layers / request.workers


@dataclass(frozen=True)
class _Work:
    spec: ModelSpec
    request: Request
    read: LayerReader
    progress: Callable[[], None]
    predict: Prediction | None

    @classmethod
    def of(
        cls,
        source: Source,
        request: Request,
        statistics: StatisticsFile | None,
        progress: Callable[[], None] = lambda: None,
    ) -> _Work:
        """What the layers of a plan are looked at with."""
        read = LayerReader(source, statistics, behind_norm=request.merges_behind_norm(statistics))
        predict = None
        if statistics is not None and request.loss in ("predicted", "corrected"):
            predict = Prediction(statistics, request.options.merge)
        return cls(source.spec, request, read, progress, predict)

    @property
    def rule(self) -> MergeRule:
        return RULES[self.request.options.merge]

    def front(self, entries: Sequence[LayerEntry]) -> list[FrontPoint]:
        """The allocation's points."""
        rng = random.Random(f"{self.request.options.seed}/allocation")
        return self.request.allocation.front(entries, tied=self.request.tied, rng=rng)

    def shapes(self, whole_front: bool) -> Sequence[EntryShape]:
        """Every layer entry with the numbers of heads to look at.

        Where nothing depends on what a candidate costs, the split is settled first, and that is one number per entry.
        """
        request, shapes = self.request, self.request.shapes
        if request.loss != "none" or whole_front:
            return shapes
        entries = [shape.entry for shape in shapes]
        return request.with_one_count(pick(self.front(entries), entries, request.share).counts)

    def tasks(self, shapes: Sequence[EntryShape], compare: bool) -> list[LayerTask]:
        """What there is to do for the entries of each layer."""
        request, options = self.request, self.request.options
        return [
            LayerTask(
                tuple(shape for shape in shapes if shape.layer == layer),
                request.method, options.merge, options.seed, compare, self.predict,
            )
            for layer in range(self.spec.num_layers)
        ]  # fmt: skip

    def layer_plans(self, candidates: Sequence[EntryCandidates], counts: Sequence[int]) -> list[LayerPlan]:
        """The layers of the plan, when these numbers of heads are chosen for these entries."""
        chosen: dict[int, list[Chosen]] = {}
        for entry, count in zip(candidates, counts, strict=True):
            found = entry.by_count[count]
            chosen.setdefault(entry.layer, []).append((entry.layer, entry.side, found))
        merge = self.request.options.merge
        tasks = [(tuple(here), merge) for here in chosen.values()]
        return list(each(self.read, settled_layer, tasks, self.request.workers))


def _decide(
    work: _Work, measure: Measure | None, whole_front: bool
) -> tuple[list[EntryCandidates], list[FrontPoint], list[LayerPlan]]:
    """Every entry's candidates first, then the split of the budget."""
    request = work.request
    candidates: list[EntryCandidates] = []
    layers: list[LayerPlan] = []
    tasks = work.tasks(work.shapes(whole_front), whole_front)
    for here, settled in look_at_layers(work.read, tasks, request.workers):
        candidates += here
        layers += settled
        work.progress()
    candidates = _with_losses(candidates, work, measure)
    entries = [entry.entry for entry in candidates]
    points = work.front(entries)
    if len(layers) < work.spec.num_layers:
        layers = work.layer_plans(candidates, pick(points, entries, request.share).counts)
    return candidates, points, layers


def _with_losses(
    candidates: list[EntryCandidates], work: _Work, measure: Measure | None
) -> list[EntryCandidates]:
    """The candidates with what each loses, in what the request weighs."""
    loss = work.request.loss
    if loss == "none":
        return candidates
    if loss in ("predicted", "corrected", "measured"):
        assert measure is not None
        found = measure(candidates, work.read)
    else:
        found = [{n: getattr(c, loss) for n, c in entry.by_count.items()} for entry in candidates]
    weighed: list[EntryCandidates] = []
    for entry, losses in zip(candidates, found, strict=True):
        for count, value in losses.items():
            if not math.isfinite(value):
                raise PlanError(
                    f"{entry.entry.name}: the loss ({loss}) of keeping {count} heads is {value}, not a number"
                )
        values = tuple(losses[count] for count in entry.entry.counts)
        weighed.append(replace(entry, entry=replace(entry.entry, losses=values)))
    return weighed


def _record(
    source: Source,
    request: Request,
    statistics: StatisticsFile | None,
    layers: Sequence[LayerPlan],
    errors: KeyErrors | None,
) -> Plan:
    """The plan as it is written down; `errors` of keys where they are merged before a normalisation."""
    spec, options, allocation = source.spec, request.options, request.allocation
    rule = RULES[options.merge]
    behind = request.merges_behind_norm(statistics)
    key_rule = rule.on(spec.turning if behind else spec.channels)
    behind = behind and not all(layer.grouping.key.is_identity for layer in layers)
    value_rule = rule.on(Channels.mixing(spec.head_dim))
    merging = Merging(rule=rule.name, key=key_rule.name, value=value_rule.name, behind_norm=behind)
    groupings = tuple(layer.grouping for layer in layers)
    fits_stock = is_uniform(groupings) and spec.can_be_uniform and not behind
    chosen: Format = "uniform" if fits_stock and options.format != "grouped" else "grouped"
    return Plan(
        source=_plan_source(source),
        budget=_reached(spec.cache, request, groupings),
        format=chosen,
        method=options.method,
        method_options=request.method.options(),
        allocation=allocation.name,
        allocation_options=allocation.options(),
        layer_loss=request.loss,
        constraints=Constraints(
            kv_maps=options.kv_maps,  # pyright: ignore[reportArgumentType]  # one of its choices
            cardinality=options.cardinality,  # pyright: ignore[reportArgumentType]
            max_group_size=options.max_group_size,
            kv_multiple_of=options.kv_multiple_of,
        ),
        merging=merging,
        seed=options.seed,
        moments=statistics_record(statistics) if statistics else None,
        cache=(cache := _cache_record(request, groupings, spec)),
        versions={"gqakit": __version__},
        notes=(*_notes(merging, spec, errors), *_cache_notes(cache, groupings, spec)),
        layers=tuple(layers),
    )


def statistics_record(statistics: StatisticsFile) -> StatisticsRecord:
    """How a plan names the calibration that it rests on."""
    return StatisticsRecord(
        path=str(statistics.path), fingerprint=statistics.fingerprint, tokens=statistics.header.tokens
    )


def _plan_source(source: Source) -> PlanSource:
    spec = source.spec
    return PlanSource(
        name=source.model_id,
        model_type=spec.model_type,
        stacks=spec.noted_stacks,
        fingerprint=source.fingerprint,
        num_layers=spec.num_layers,
        num_heads=_one_or_each(spec.heads),
        num_kv_heads=_one_or_each(spec.key_heads),
        head_dim=spec.head_dim,
    )


def _one_or_each(counts: tuple[int, ...]) -> int | tuple[int, ...]:
    return counts if len(set(counts)) > 1 else counts[0]


def _reached(before: CacheShape, request: Request, groupings: Sequence[Grouping]) -> BudgetRecord:
    budget, types = request.budget, request.types
    after = replace(
        before,
        key_heads=tuple(g.key.num_groups for g in groupings),
        value_heads=tuple(g.value.num_groups for g in groupings),
    )
    if types is None:
        ratio, whole, kept = after.ratio_to(before), before.bytes_per_token, after.bytes_per_token
    else:  # against 16 bits
        whole, kept = replace(before, element_bytes=2).bytes_per_token, round(after.bytes_in(types))
        ratio = after.bytes_in(types) / whole
    return BudgetRecord(
        asked=budget.asked,
        kv_ratio_asked=budget.kv_ratio,
        kv_ratio=ratio,
        kv_bytes_per_token_before=whole,
        kv_bytes_per_token=kept,
    )


def _cache_record(request: Request, groupings: Sequence[Grouping], spec: ModelSpec) -> CacheRecord | None:
    types = request.types
    if types is None:
        return None
    return CacheRecord(
        types=types.name,
        engine=engine_of(types, request.options.engine),
        serve=serving(types, request.options.engine),
        basis=is_coarse(types.key, biased="key" in spec.biased) or is_coarse(types.value),
    )


def _cache_notes(cache: CacheRecord | None, groupings: Sequence[Grouping], spec: ModelSpec) -> Iterator[str]:
    if cache is None:
        return
    if all(grouping.is_identity for grouping in groupings):
        yield f"the types of the cache ({cache.types}) alone meet the budget: no heads are merged"
    if cache.basis and spec.channels.locked:
        yield (
            "keys are normalised after their projection, so nothing can be folded in to make them round better; values are "
            "put in a basis that does"
        )


def _notes(merging: Merging, spec: ModelSpec, errors: KeyErrors | None) -> list[str]:
    notes: list[str] = []
    if merging.key != merging.rule:
        cost = "" if errors is None else f": {errors}"
        notes.append(
            f"keys use {merging.key} instead of {merging.rule}: this {spec.model_type} normalises keys after "
            "their projection, so no linear map can be folded there; `format=grouped` with a calibration merges them "
            f"behind it, for transformers alone, which keeps far more quality{cost}"
        )
    if merging.behind_norm:
        notes.append(
            "keys are merged behind their normalisation: the key projection keeps all its heads, their merged form is "
            "cached, and only transformers runs it; `format=uniform` merges them before it, for every engine, and "
            "loses far more quality"
        )
    return notes
