"""Beyond what can be solved exactly: 32 heads, `optimal` against QCQA, k-means and AsymGQA's search on the same score.

    python benchmarks/large_search.py

The score is the weight-sharing error. Heads: 32 of MiniLM-L6's and of Whisper base's, taken from several layers and grouped
as if they were one (real weights; no packaged model has so many heads in a layer), and synthetic ones. Gap: how much of
the error of `optimal` a better grouping could save at most, by the bound of Ding and He. The last table is the fold's own
error on one synthetic layer, with the low-rank bound.
"""

from __future__ import annotations

import random
import time

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from common import Table, arguments, environment
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.merging import RULES
from gqakit.core.merging.bound import low_rank_bound
from gqakit.core.rope import Channels
from gqakit.core.statistics import LayerStatistics, key_stats, value_stats
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.asymgqa import AsymGQA
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.local_search import LocalSearch
from gqakit.grouping_methods.qcqa.method import QCQA, layer_front
from packaged import MODELS

HEADS = 32
COUNTS = (4, 8, 16, 24)


def main() -> None:
    """Measure and print."""
    arguments(__doc__ or "").parse_args()
    print(environment())
    table = Table(
        "Excess over `optimal` (negative: better than it)",
        "heads",
        "groups",
        "QCQA",
        "k-means",
        "AsymGQA",
        "gap of optimal",
    )
    worst = 0.0
    for name, vectors in layers():
        error_of = WithinClusterError(vectors @ vectors.T)
        sizes = {n: Sizes(1, HEADS - n + 1) for n in range(1, HEADS + 1)}
        evolved = {point.size: point.loss for point in layer_front(error_of.inner, sizes, QCQA(), seed="0")}
        for count in COUNTS:
            rng = random.Random(f"{name}/{count}")
            best = total(
                error_of, LocalSearch(HEADS, error_of).partition(count, sizes=sizes[count], rng=rng).groups
            )
            walked = total(error_of, AsymGQA().search(error_of, count, sizes=sizes[count], rng=rng).groups)
            others = [evolved[count], clustered(error_of, vectors, count), walked]
            worst = min(worst, *(other / best - 1 for other in others))
            cells = [f"{other / best - 1:+.3%}" for other in others]
            table.row(name, str(count), *cells, f"{1 - error_of.bound(count) / best:.1%}")
    print(f"\nmost that any other is better: {-worst:.4%}")
    fold_gap()


def layers() -> list[tuple[str, torch.Tensor]]:
    """Heads as vectors `[32, n]`."""
    found: list[tuple[str, torch.Tensor]] = []
    for name, load in MODELS.items():
        rows = [_flat(weights) for _, weights in load()]
        found.append((f"{name}, layers together", torch.cat(rows)[:HEADS]))
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    labels = torch.randint(0, 8, (HEADS,), generator=rng)
    found.append(("synthetic, no structure, 64 dimensions", normal(HEADS, 64)))
    found.append(("synthetic, no structure, 6 dimensions", normal(HEADS, 6)))
    found.append(("synthetic, 8 clusters and noise", normal(8, 64)[labels] + 0.7 * normal(HEADS, 64)))
    found.append(("synthetic, neighbours alike", normal(HEADS, 64).cumsum(0)))
    return found


def _flat(weights: AttentionWeights) -> torch.Tensor:
    return torch.cat([p.augmented().double().flatten(1) for p in (weights.key, weights.value)], 1)


def total(error_of: WithinClusterError, groups: tuple[tuple[int, ...], ...]) -> float:
    """The score of a partition."""
    return sum(map(error_of, groups))


def clustered(error_of: WithinClusterError, vectors: torch.Tensor, count: int) -> float:
    """The best of 50 runs of k-means from k-means++ starts that keep every cluster."""
    values, basis = torch.linalg.eigh(vectors @ vectors.T)
    points = (basis * values.clamp_min(0).sqrt()).numpy()  # the same distances in few dimensions
    best = np.inf
    for seed in range(50):
        _, labels = kmeans2(points, count, minit="++", seed=seed, iter=50, missing="warn")  # pyright: ignore[reportCallIssue]
        if len(set(labels.tolist())) == count:
            groups = tuple(tuple(np.flatnonzero(labels == g).tolist()) for g in range(count))
            best = min(best, total(error_of, groups))
    return best


def fold_gap() -> None:
    """The fold's error on 32 heads of width 64 under rotary embedding."""
    rng = torch.Generator().manual_seed(1)
    width, d = 1024, 64

    def projection() -> Projection:
        return Projection(torch.randn(HEADS, d, width, generator=rng) / width**0.5)

    out = torch.randn(HEADS, width, d, generator=rng) / width**0.5
    weights = AttentionWeights(projection(), projection(), projection(), out)
    x = torch.randn(4096, width + 1, generator=rng, dtype=torch.float64) * torch.linspace(0.05, 2, width + 1)
    distances = 1 / (1 + torch.arange(512).double()).expand(HEADS, -1)
    known = LayerStatistics(
        x.T @ x / 4096, None, distances, 10000.0 ** -(torch.arange(d // 2) / (d / 2)).double()
    )
    table = Table(
        "`optimal` with fold, 32 heads of width 64, synthetic",
        "what",
        "groups",
        "relative error",
        "gap",
        "seconds",
    )
    for name, stats in (
        ("keys", key_stats(weights, known, Channels.rotary(d))),
        ("values", value_stats(weights, known)),
    ):
        cost, energy = RULES["fold"].costs(stats), float(stats.energy().sum())
        for count in (8, 16):
            start = time.process_time()
            sizes = Sizes(1, HEADS - count + 1)
            found = LocalSearch(HEADS, cost).partition(count, sizes=sizes, rng=random.Random(0))
            spent = time.process_time() - start
            error = sum(map(cost, found.groups))
            gap = 1 - low_rank_bound(stats, count) / error
            table.row(name, str(count), f"{error / energy:.3f}", f"{gap:.0%}", f"{spent:.0f}")


if __name__ == "__main__":
    main()
