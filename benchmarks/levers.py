"""What each part of the default conversion is worth, and what else was tried. No training.

    python benchmarks/levers.py

SmolLM2-135M-Instruct, WikiText-2; every line changes one thing against the default at the same KV bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import torch

from common import Table, all_layers, arguments, environment
from gqakit.calibration.store import StatisticsFile
from gqakit.core import distances
from gqakit.core import statistics as core_statistics
from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES
from gqakit.core.statistics import HeadStats, LayerStatistics
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.partition_search import best_partition
from gqakit.planning.layer_features import LayerFeatures
from gqakit.planning.plan import Plan
from workbench import Workbench, cross, without

Cells = tuple[str, ...]


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    bench = Workbench.on_smollm2(options.wikitext, options.work)
    windows = [bench.windows("test", 8, 512), bench.windows("test", 2, 2048)]
    statistics = bench.statistics()
    print(environment())

    def measure(plan: Plan, using: StatisticsFile | None, long: bool = False) -> Cells:
        scores = bench.score(plan, using, windows if long else windows[:1])
        return tuple(f"{score.perplexity:,.2f} ({score.kl:.3f})" for score in scores)

    def both(using: StatisticsFile | None, long: bool = True, **how: Any) -> Cells:
        return tuple(cell for kept in (2, 1) for cell in measure(bench.plan(kept, using, **how), using, long))

    at_both = ("2/3: 8 x 512", "2/3: 2 x 2048", "1/3: 8 x 512", "1/3: 2 x 2048")
    table = Table("Perplexity (KL to the source), one change at a time", "change", *at_both)
    table.row("default (fold)", *both(statistics))
    pairwise = bench.changed_statistics("pairwise", without("distances", "frequencies"))
    table.row("keys: one complex number a frequency pair, no distances", *both(pairwise))
    inputs = bench.changed_statistics("inputs", without("value"))
    table.row("values: layer input instead of what attention delivers", *both(inputs))
    plain = bench.changed_statistics("plain", without("distances", "frequencies", "value"))
    table.row("both of these: the plain fold", *both(plain))
    with mock.patch.object(distances, "TAIL", 0.0):
        table.row("keys: distances of the window alone, nothing beyond", *both(statistics))
    table.row("keys and queries: centred second moment", *both(bench.changed_statistics("centred", _centre)))
    with _metric(key=True):
        table.row("keys: not weighed by the queries", *both(statistics))
    with _metric(value=True):
        table.row("values: not weighed by the output projection", *both(statistics))
    table.row("calibrated on gqakit's own text", *both(bench.statistics("calibration")))
    table.row("weights only (C = I)", *both(None))

    table = Table("Other merge rules, each with the grouping that is best for it", "merge rule", "2/3", "1/3")
    for merge in ("mean", "mean_norm", "medoid", "aligned", "aligned_norm"):
        table.row(merge, *both(statistics, long=False, merge=merge))

    table = Table("Groupings at 2/3, fold", "grouping", "8 x 512")
    for method in ("optimal", "neighbour", "random", "weight_similarity"):
        table.row(method, *measure(bench.plan(2, statistics, method=method), statistics))
    table.row("worst", *measure(_grouped(bench, statistics, 2, key=-1.0, value=-1.0), statistics))
    apart = cross(_grouped(bench, statistics, 2, key=1.0), _grouped(bench, statistics, 2, value=1.0))
    table.row("optimal, keys and values apart", *measure(apart, statistics))

    table = Table("Keys and values apart, the same in every layer", "heads of 3", "KV kept", "8 x 512")
    for keys, values in ((3, 2), (2, 3), (3, 1), (2, 2), (1, 3), (2, 1), (1, 2), (1, 1)):
        plan = cross(
            _grouped(bench, statistics, keys, key=1.0), _grouped(bench, statistics, values, value=1.0)
        )
        table.row(f"{keys} key, {values} value", f"{keys + values}/6", *measure(plan, statistics))


def _centre(statistics: LayerStatistics) -> LayerStatistics:
    mean = statistics.input[:-1, -1]
    centred = statistics.input.clone()
    centred[:-1, :-1] -= torch.outer(mean, mean)
    return replace(statistics, input=centred)


@contextmanager
def _metric(key: bool = False, value: bool = False) -> Iterator[None]:
    """Errors that count alike in every channel, whatever reads them."""

    def plain(compute: Any) -> Any:
        def changed(*args: Any) -> HeadStats:
            stats = compute(*args)
            eye = torch.eye(stats.metric.shape[-1], dtype=stats.metric.dtype).expand_as(stats.metric)
            return replace(stats, metric=eye.clone())

        return changed

    with mock.patch.multiple("gqakit.planning.layer_features", **_patched(plain, key, value)):
        yield


def _patched(plain: Any, key: bool, value: bool) -> dict[str, Any]:
    return {
        "key_stats": plain(core_statistics.key_stats) if key else core_statistics.key_stats,
        "value_stats": plain(core_statistics.value_stats) if value else core_statistics.value_stats,
    }


def _grouped(
    bench: Workbench, statistics: StatisticsFile, kept: int, key: float = 0.0, value: float = 0.0
) -> Plan:
    """A plan whose groups minimise a weighted sum of the relative errors of keys and of values."""
    plan = bench.plan(kept, statistics)
    rule = RULES["fold"]
    layers = []
    for layer, features in zip(plan.layers, all_layers(bench.source, statistics), strict=True):

        @cache
        def cost(group: tuple[int, ...], features: LayerFeatures = features) -> float:
            total = 0.0
            for share, side in ((key, features.key), (value, features.value)):
                if share:
                    total += share * rule.error(side.select(group)) / float(side.energy().sum())
            return total

        heads = features.weights.num_kv_heads
        sizes = Sizes.of(heads, kept)
        assert sizes is not None
        partition = (
            Partition.identity(heads)
            if kept == heads
            else best_partition(heads, kept, cost, sizes=sizes, rng=random.Random(0))
        )
        layers.append(layer.model_copy(update={"key": partition.labels, "value": partition.labels}))
    return plan.model_copy(update={"layers": tuple(layers), "format": "grouped"})


if __name__ == "__main__":
    main()
