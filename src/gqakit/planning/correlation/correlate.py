"""`correlate`: is a method's score any guide to what a grouping costs the model?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gqakit.calibration.calibrate import check_not_grouped
from gqakit.calibration.store import MomentsFile
from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES
from gqakit.errors import UsageError, unknown_name
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import LayerHeads, Sizes
from gqakit.models.source import Source
from gqakit.planning.candidates import LayerStats
from gqakit.planning.correlation.ranks import (
    Correlation,
    Picked,
    picked_loss,
    rank_correlation,
    stratified_correlation,
)
from gqakit.planning.layer_loss.file import Key
from gqakit.planning.layer_loss.measure import measure_keys, what_is_measured
from gqakit.planning.make import MeasureOptions
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


def correlate(
    model: str,
    *,
    moments: Path,
    merge: str = "fold",
    kv_heads: Sequence[int] = (),
    layers: int = 8,
    random_groupings: int = 8,
    stacks: Sequence[str] = (),
    seed: int = 0,
    measure: MeasureOptions | None = None,
    progress: Reporter = silent,
) -> Correlated:
    """Rank correlation between proxies and the measured loss, over random and searched groupings of single layers.

    Args:
        model: directory or hub name.
        moments: its moments file.
        merge: the merge rule that is used and whose error is one of the proxies.
        kv_heads: numbers of heads to group to; every number below the source's by default.
        layers: how many layers at most, evenly spaced from the first to the last.
        random_groupings: for each layer and number, besides those that the methods find.
        stacks: the kinds of attention layers to sample; those that a plan would convert by default.
        seed: of the random groupings, of the searches and of the bootstrap.
        measure: how losses are measured.
        progress: see the package.

    Raises:
        UsageError, PlanError, CheckpointError, FamilyError, DataError.
    """
    if merge not in RULES:
        raise unknown_name("merge rule", merge, RULES)
    opened = Source.open(model, stacks)
    source, spec = opened.checkpoint, opened.spec
    check_not_grouped(source, spec)
    opened = MomentsFile.open(moments)
    opened.check_source(source.fingerprint(opened.header.fingerprint), model)
    most = min(spec.key_heads)
    if most < 2:
        raise UsageError(f"{model} has one KV head in a layer: there is nothing to group")
    counts = list(dict.fromkeys(kv_heads)) or list(range(1, most))
    if not all(1 <= count < most for count in counts):
        raise UsageError(f"--kv-heads {counts}: to group something it must be 1 to {most - 1}")
    measure = measure or MeasureOptions()
    bench, losses = measure.prepare(source, spec, opened, merge)
    chosen = _spread(spec.num_layers, layers)
    found: list[tuple[Key, int, str, dict[str, float]]] = []
    with progress("sample", len(chosen), "layers") as advance:
        for layer in chosen:
            heads = LayerStats.read(source, spec, opened, layer).heads(RULES[merge], "both")
            objectives = {name: METHODS[name].objective(heads) for name in PROXIES}
            for count in counts:
                for partition, origin in _partitions(
                    heads, count, random_groupings, f"{seed}/{layer}/{count}"
                ):
                    scores = {name: sum(map(cost, partition.groups)) for name, cost in objectives.items()}
                    found.append(((layer, "both", partition.labels), count, origin, scores))
            advance(1)
    known = losses()
    measure_keys(bench, [key for key, *_ in found], known, measure.workers, progress)
    made = tuple(
        Sample(spec.name(key[0]), count, origin, key[2], scores, known.known[key])
        for key, count, origin, scores in found
    )
    return Correlated(
        merge,
        what_is_measured(source),
        picked_loss([s.loss for s in made], [s.loss for s in made], _like(made), seed),
        tuple(_row(name, made, seed) for name in PROXIES),
        made,
    )


def _spread(total: int, wanted: int) -> list[int]:
    """Evenly spaced indices, the first and the last among them."""
    if wanted == 1:
        return [total // 2]
    return sorted({round(i * (total - 1) / (wanted - 1)) for i in range(wanted)})


def _partitions(heads: LayerHeads, count: int, samples: int, seed: str) -> list[tuple[Partition, str]]:
    """Distinct partitions: those that methods find, then random ones of any sizes."""
    sizes = Sizes.of(heads.num_heads, count)
    assert sizes is not None
    found: dict[Partition, str] = {}
    for name in ("neighbour", *PROXIES):
        partition = METHODS[name].groups(heads, {count: sizes}, seed=seed)[count]
        found.setdefault(partition, name)
    rng, searched = random.Random(seed), len(found)
    for _ in range(50 * samples):
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
    """What samples share that only their grouping tells apart."""
    return [(sample.layer, sample.kv_heads) for sample in samples]
