"""How good QCQA's search is, and what its settings matter: against the exact optimum, on the weights of real models.

    python benchmarks/nsga_sensitivity.py

MiniLM-L6 (6 layers of 12 heads) and Whisper base (18 attentions of 8 heads), small enough that every layer's best partition
into every number of groups is known. Excess: the search's weight-sharing error over the optimum's, minus 1.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common import Table, environment
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.partition_search import exact_partitions
from gqakit.grouping_methods.qcqa.evolution import Rng, Rows, Scores, rng_of
from gqakit.grouping_methods.qcqa.layer_search import LayerOperators, layer_front
from gqakit.grouping_methods.qcqa.method import QCQA
from gqakit.grouping_methods.qcqa.nsga2 import evolve
from gqakit.grouping_methods.qcqa.rows import num_groups
from gqakit.planning.allocation.base import FrontPoint, LayerEntry, pick, undominated
from gqakit.planning.allocation.knapsack import Knapsack
from gqakit.planning.allocation.qcqa_layers import QCQALayers
from packaged import MODELS, inner_products

EVALUATIONS = (1_000, 10_000)
SEEDS = 5
SHARES = {"3/4": 0.75, "1/2": 0.5, "1/4": 0.25}


@dataclass(frozen=True)
class Layer:
    """One attention: what is searched on, and the least error for every number of groups."""

    name: str
    inner: Tensor
    counts: dict[int, Sizes]
    best: dict[int, float]

    @classmethod
    def of(cls, name: str, inner: Tensor) -> Layer:
        """With the optimum, by dynamic programming over all sets of heads."""
        heads = len(inner)
        counts = {n: Sizes(1, heads - n + 1) for n in range(1, heads + 1)}
        error = WithinClusterError(inner)
        exact = exact_partitions(heads, counts, error)
        return cls(name, inner, counts, {n: sum(map(error, exact[n].groups)) for n in counts})

    def front(self, options: QCQA, seed: int) -> dict[int, float]:
        """The error that a search finds for every number of groups."""
        return {
            p.size: p.loss for p in layer_front(self.inner, self.counts, options, seed=f"{seed}/{self.name}")
        }

    def excess(self, options: QCQA, seed: int) -> list[float]:
        """In percent, for every number of groups that leaves a choice."""
        found = self.front(options, seed)
        return [100 * (found[n] / self.best[n] - 1) for n in self.counts if 1 < n < len(self.inner)]


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(environment())
    models = {name: [Layer.of(*each) for each in inner_products(layers())] for name, layers in MODELS.items()}
    _quality(models)
    _settings(models["MiniLM-L6"])
    _stages(models)


def _quality(models: dict[str, list[Layer]]) -> None:
    table = Table(
        "Every layer and every number of groups, default settings, one seed",
        "model",
        "layers x numbers",
        "largest excess",
        "found exactly",
    )
    for name, layers in models.items():
        every = [each for layer in layers for each in layer.excess(QCQA(), 0)]
        exact = sum(each < 1e-7 for each in every)
        table.row(name, f"{len(every)}", f"{max(every):.4f} %", f"{exact} of {len(every)}")
    worst = 0.0
    for layer in models["Whisper base"]:
        labels = torch.tensor(list(_all_labels(len(layer.inner))))
        errors, numbers = WithinClusterError(layer.inner).of_labels(labels), labels.max(1).values + 1
        for number, best in layer.best.items():
            worst = max(worst, abs(float(errors[numbers == number].min()) - best) / layer.best[1])
    print(f"\nexact search against all {len(labels)} partitions of 8 heads, every layer of Whisper base:")
    print(f"largest difference {worst:.1e} of the error of one group")


def _all_labels(heads: int) -> Iterator[tuple[int, ...]]:
    """Every partition."""
    rows: list[tuple[int, ...]] = [()]
    for _ in range(heads):
        rows = [(*row, label) for row in rows for label in range(max(row, default=-1) + 2)]
    yield from rows


def _settings(layers: Sequence[Layer]) -> None:
    heads = len(layers[0].inner)
    for evaluations in EVALUATIONS:
        table = Table(
            f"MiniLM-L6, {evaluations:,} evaluations per layer, {SEEDS} seeds",
            "population x (1 + generations)",
            "crossover",
            "mutation",
            "mean excess +- deviation over seeds",
            "largest",
        )
        default = QCQA(generations=evaluations // 100 - 1)
        tried = [replace(default, population=p, generations=evaluations // p - 1) for p in (20, 50, 100, 200)]
        tried += [replace(default, crossover=crossover) for crossover in (0.0, 0.5, 1.0)]
        tried += [replace(default, mutation=per / heads) for per in (0.0, 0.25, 0.5, 2.0, 4.0)]
        for options in tried:
            by_seed = [[e for layer in layers for e in layer.excess(options, seed)] for seed in range(SEEDS)]
            rate = "1/H" if options.mutation is None else f"{options.mutation * heads:g}/H"
            table.row(
                f"{options.population} x {1 + options.generations}",
                f"{options.crossover:g}",
                rate,
                _spread([statistics.mean(each) for each in by_seed]),
                f"{max(map(max, by_seed)):.3f} %",
            )


def _stages(models: dict[str, list[Layer]]) -> None:
    for name, layers in models.items():
        for evaluations in EVALUATIONS:
            options = QCQA(generations=evaluations // 100 - 1)
            table = Table(
                f"{name}, {evaluations:,} evaluations, {SEEDS} seeds: excess of the model's total",
                "search",
                *(f"{share} of the heads" for share in SHARES),
            )
            optimum = _at_shares(
                Knapsack().front(_entries(layers, [e.best for e in layers]), tied=False, rng=_rng())
            )
            found: dict[str, list[list[float]]] = {}
            for seed in range(SEEDS):
                for kind, front in _fronts(layers, options, seed):
                    totals = _at_shares(front)
                    excess = [100 * (a / b - 1) for a, b in zip(totals, optimum, strict=True)]
                    found.setdefault(kind, []).append(excess)
            for kind, rows in found.items():
                table.row(kind, *(_spread(list(column)) for column in zip(*rows, strict=True)))


def _fronts(layers: Sequence[Layer], options: QCQA, seed: int) -> Iterator[tuple[str, list[FrontPoint]]]:
    entries = _entries(layers, [layer.front(options, seed) for layer in layers])
    second = QCQALayers(options.population, options.generations, options.crossover)
    yield "two stages", second.front(entries, tied=False, rng=_rng(seed))
    yield "stage 1, then knapsack", Knapsack().front(entries, tied=False, rng=_rng(seed))
    inners, counts = [layer.inner for layer in layers], [layer.counts for layer in layers]
    yield "one stage", undominated(model_points(inners, counts, options, seed=str(seed)))


@dataclass(frozen=True)
class ModelOperators:
    """The paper's one-stage variant: the chromosomes of all layers side by side, each layer bred as it is alone."""

    layers: Sequence[LayerOperators]

    def cut(self, rows: Rows) -> list[Rows]:
        """The part of each layer, of rows `[rows, heads of all layers]`."""
        return np.split(rows, np.cumsum([len(layer.inner) for layer in self.layers])[:-1], axis=-1)

    def start(self, population: int, rng: Rng) -> Rows:
        """Rows that keep about the same share of heads in every layer, from all shares."""
        parts: list[Rows] = []
        for layer in self.layers:
            rows = layer.start(population, rng)
            rows = rows[np.argsort(num_groups(rows), kind="stable")]
            parts.append(rows[np.arange(population) * len(rows) // population])
        return np.concatenate(parts, axis=1)

    def cross(self, first: Rows, second: Rows, rng: Rng) -> Rows:
        """Layer by layer: crossed, or whole from one of the parents."""
        parts: list[Rows] = []
        for layer, a, b in zip(self.layers, self.cut(first), self.cut(second), strict=True):
            how = rng.integers(3, size=(len(a), 1))
            parts.append(np.where(how == 0, layer.cross(a, b, rng), np.where(how == 1, a, b)))
        return np.concatenate(parts, axis=1)

    def mutate(self, rows: Rows, rng: Rng) -> Rows:
        parts = zip(self.layers, self.cut(rows), strict=True)
        return np.concatenate([layer.mutate(part, rng) for layer, part in parts], axis=1)

    def repair(self, rows: Rows, rng: Rng) -> Rows:
        parts = zip(self.layers, self.cut(rows), strict=True)
        return np.concatenate([layer.repair(part, rng) for layer, part in parts], axis=1)

    def score(self, rows: Rows) -> Scores:
        """The totals over the layers."""
        scored = [layer.score(part) for layer, part in zip(self.layers, self.cut(rows), strict=True)]
        return sum(sizes for sizes, _ in scored), sum(losses for _, losses in scored)  # pyright: ignore[reportReturnType]


def model_points(
    inners: Sequence[Tensor], counts: Sequence[dict[int, Sizes]], options: QCQA, *, seed: str
) -> list[FrontPoint]:
    """One search over all layers at once: the best point met for every total number of heads."""
    rate = options.rate(sum(map(len, inners)))
    layers = ModelOperators([LayerOperators(i, c, rate) for i, c in zip(inners, counts, strict=True)])
    start = layers.start(options.population, rng_of(f"{seed}/start"))
    return [
        FrontPoint(
            tuple(max(part.tolist()) + 1 for part in layers.cut(np.array(each.row))), each.size, each.loss
        )
        for each in evolve(start, layers, options, seed=seed)
    ]


def _entries(layers: Sequence[Layer], errors: Sequence[dict[int, float]]) -> list[LayerEntry]:
    return [
        LayerEntry(layer.name, len(layer.inner), 1, tuple(sorted(each)), tuple(each[n] for n in sorted(each)))
        for layer, each in zip(layers, errors, strict=True)
    ]


def _at_shares(front: list[FrontPoint]) -> list[float]:
    whole = [LayerEntry("all", max(point.size for point in front), 1, ())]
    return [pick(front, whole, share).loss for share in SHARES.values()]


def _rng(seed: int = 0) -> random.Random:
    return random.Random(seed)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} +- {statistics.pstdev(values):.3f} %"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
