"""`correlate`: samples groupings of single layers, measures what they lose and asks how well each score predicts it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gqakit.calibration.store import StatisticsFile
from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES
from gqakit.errors import UsageError
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import HeadFeatures, Sizes
from gqakit.grouping_methods.qcqa.evolution import check_pymoo
from gqakit.models.agreement import check_convertible
from gqakit.models.rounding import check_cache_types
from gqakit.models.source import Source
from gqakit.options import takes
from gqakit.planning.correlation.options import CorrelateOptions
from gqakit.planning.correlation.ranks import (
    Correlation,
    Picked,
    picked_loss,
    rank_correlation,
    stratified_correlation,
)
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.file import Key
from gqakit.planning.layer_loss.measure import Measurement, what_is_measured
from gqakit.progress import Reporter, silent

PROXIES = {
    "optimal": "the merge rule's own error",
    "qcqa": "weight-sharing error (QCQA)",
    "weight_similarity": "weight similarity",
    "activation_similarity": "activation similarity",
    "asymgqa": "channel similarity (AsymGQA)",
    "aligned": "similarity after alignment",
}
"""Methods whose objective is tried as a guide, and what that objective is."""


@dataclass(frozen=True)
class Sample:
    """One grouping of one layer: where it came from, every proxy's score, and the loss when only it is converted.

    `layer` is named as everywhere: its index, with the stack where the model has several.
    """

    layer: str
    kv_heads: int
    origin: str
    labels: tuple[int, ...]
    proxies: dict[str, float]
    loss: float


@dataclass(frozen=True)
class ProxyRow:
    """One proxy: its rank correlation with the loss over all samples, and among groupings of one layer to one number.

    `picked` is what the grouping of the lowest score loses, against the average of these.
    """

    proxy: str
    meaning: str
    overall: Correlation
    like: Correlation
    picked: Picked


@dataclass(frozen=True)
class Correlated:
    """The samples and what they say of each proxy.

    `loss` says what the losses are; `best` is what the best of the like samples loses, against their average: no score can
    pick better.
    """

    merge: str
    loss: str
    best: Picked
    rows: tuple[ProxyRow, ...]
    samples: tuple[Sample, ...]


@takes(CorrelateOptions)
def correlate(model: str | Path, options: CorrelateOptions, progress: Reporter = silent) -> Correlated:
    """Rank correlation between proxies and the measured loss, over random and searched groupings of single layers.

    Args:
        model: directory or hub name.
        options: see `CorrelateOptions`; also as keywords.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        GqakitError: one of UsageError, PlanError, CheckpointError, FamilyError, DataError.
        MissingDependencyError: without pymoo, since QCQA's search is among the samples.
    """
    check_pymoo()
    source = Source.open(model, options.stacks)
    check_convertible(source)
    spec, statistics = source.spec, StatisticsFile.open(options.statistics)
    statistics.check_source(source.fingerprint_like(statistics.header.fingerprint), source.name)
    most = min(spec.key_heads)
    if most < 2:
        raise UsageError(f"{model} has one KV head in a layer: there is nothing to group")
    counts = options.counts or list(range(1, most))
    if not all(1 <= count < most for count in counts):
        raise UsageError(f"`kv_heads` is {counts}: to group something it must be 1 to {most - 1}")
    measurement = Measurement.on(
        source, statistics, options.merge, options.read(), options.window, options, progress
    )
    types = check_cache_types(options.kv_cache, spec)
    measurement = replace(measurement, bench=replace(measurement.bench, kv_cache=types))
    read = LayerReader(source, statistics)
    chosen = _evenly_spaced(spec.num_layers, options.layers)
    found: list[_Scored] = []
    with progress("sample", len(chosen), "layers") as advance:
        for layer in chosen:
            found += _scored(layer, read(layer).heads(RULES[options.merge], "both"), counts, options)
            advance(1)
    known = measurement.measure([each.key for each in found], read)
    samples = tuple(
        Sample(spec.name(s.layer), s.kv_heads, s.origin, s.labels, s.proxies, known[s.key]) for s in found
    )
    measured = [sample.loss for sample in samples]
    best = picked_loss(measured, measured, _like(samples), options.seed)
    rows = tuple(_row(name, samples, options.seed) for name in PROXIES)
    return Correlated(options.merge, what_is_measured(source.checkpoint), best, rows, samples)


@dataclass(frozen=True)
class _Scored:
    """A sample before its loss is measured."""

    layer: int
    kv_heads: int
    origin: str
    labels: tuple[int, ...]
    proxies: dict[str, float]

    @property
    def key(self) -> Key:
        """How the file of losses calls it."""
        return self.layer, "both", self.labels


def _scored(
    layer: int, heads: HeadFeatures, counts: Sequence[int], options: CorrelateOptions
) -> list[_Scored]:
    """The groupings of one layer with what every proxy makes of them."""
    objectives = {name: METHODS[name].objective(heads) for name in PROXIES}
    return [
        _Scored(
            layer,
            count,
            origin,
            partition.labels,
            {name: sum(map(cost, partition.groups)) for name, cost in objectives.items()},
        )
        for count in counts
        for partition, origin in _partitions(
            heads, count, options.random_groupings, f"{options.seed}/{layer}/{count}"
        )
    ]


def _evenly_spaced(total: int, wanted: int) -> list[int]:
    """Evenly spaced indices, the first and the last among them."""
    if wanted == 1:
        return [total // 2]
    return sorted({round(i * (total - 1) / (wanted - 1)) for i in range(wanted)})


def _partitions(heads: HeadFeatures, count: int, samples: int, seed: str) -> list[tuple[Partition, str]]:
    """Distinct partitions: those that methods find, then random ones of any sizes."""
    sizes = Sizes.of(heads.num_heads, count)
    assert sizes is not None
    found: dict[Partition, str] = {}
    for name in ("neighbour", *PROXIES):
        partition = METHODS[name].groups(heads, {count: sizes}, seed=seed)[count]
        found.setdefault(partition, name)
    rng, searched = random.Random(seed), len(found)
    for _ in range(50 * samples):  # few heads have few partitions: give up drawing new ones in the end
        if len(found) >= searched + samples:
            break
        labels = [*range(count), *(rng.randrange(count) for _ in range(heads.num_heads - count))]
        rng.shuffle(labels)
        found.setdefault(Partition.of(labels), "random")
    return list(found.items())


def _row(name: str, samples: Sequence[Sample], seed: int) -> ProxyRow:
    scores, losses = [s.proxies[name] for s in samples], [s.loss for s in samples]
    return ProxyRow(
        name,
        PROXIES[name],
        rank_correlation(scores, losses, seed),
        stratified_correlation(scores, losses, _like(samples), seed),
        picked_loss(scores, losses, _like(samples), seed),
    )


def _like(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    """Layer and number of heads of each sample: what is the same for samples that differ in their grouping alone."""
    return [(sample.layer, sample.kv_heads) for sample in samples]
