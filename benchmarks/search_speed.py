"""What the search for groups costs at 7B shape: 32 layers of 32 heads of width 128, model width 4096.

    python benchmarks/search_speed.py

Random weights, made layer by layer in memory. Prints the rate of the Gram matrices as a share of this machine's own float64
matrix products, the time of both QCQA stages, and what scoring a candidate costs from the Gram matrix and from the weights.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from common import Table, environment
from gqakit.core.attention import Projection
from gqakit.core.statistics import head_gram, weight_inner
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.qcqa.layer_search import layer_front
from gqakit.grouping_methods.qcqa.method import QCQA
from gqakit.planning.allocation.base import LayerEntry
from gqakit.planning.allocation.qcqa_layers import QCQALayers

LAYERS, HEADS, HEAD_DIM, WIDTH = 32, 32, 128, 4096
CANDIDATES = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gram-layers", type=int, default=4, help="layers whose full Gram matrix is timed")
    options = parser.parse_args()
    print(environment())
    table = Table("Gram matrices", "what", "seconds, median (slowest)", "GFLOP/s", "of plain float64 matmul")
    plain = _plain_matmul()
    rate = 2 * WIDTH**3 / 1e9 / plain[0]
    table.row("float64 matmul, 4096 cubed", _cell(plain), f"{rate:.1f}", "100 %")
    inners: list[Tensor] = []
    full: list[float] = []
    flat: list[float] = []
    moment = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for index, pair in enumerate(_layers()):
        seconds = [_timed(weight_inner, projection) for projection in pair]
        flat += [each for each, _ in seconds]
        inners.append(seconds[0][1] + seconds[1][1])
        if index < options.gram_layers:
            full += [_timed(head_gram, projection, moment)[0] for projection in pair]
    rows = HEADS * HEAD_DIM
    _gram_row(
        table, "head_gram, one projection", full, 2 * rows * WIDTH * WIDTH + 2 * rows * rows * WIDTH, rate
    )
    _gram_row(table, "weight_inner, one projection", flat, 2 * HEADS * HEADS * HEAD_DIM * WIDTH, rate)
    print(f"\nweight_inner, keys and values of all {LAYERS} layers: {sum(flat):.1f} s")
    _search(inners)
    _scoring(inners[0])


def _search(inners: list[Tensor]) -> None:
    header = ("stage", "seconds", "of these on the processor")
    table = Table("QCQA, population 100, 100 generations, one process", *header)
    counts = {n: Sizes(1, HEADS - n + 1) for n in range(1, HEADS + 1)}
    layer_front(inners[0], counts, QCQA(generations=1), seed="warm")  # imports pymoo
    start = time.perf_counter(), time.process_time()
    fronts = [layer_front(inner, counts, QCQA(), seed=str(index)) for index, inner in enumerate(inners)]
    middle = time.perf_counter(), time.process_time()
    entries = [
        LayerEntry(f"layer {index}", HEADS, 2, tuple(p.size for p in front), tuple(p.loss for p in front))
        for index, front in enumerate(fronts)
    ]
    QCQALayers().front(entries, tied=False, rng=random.Random(0))
    end = time.perf_counter(), time.process_time()
    for name, since, until in (
        (f"1: groups, {LAYERS} layers of {HEADS} heads", start, middle),
        ("2: heads of each layer", middle, end),
        ("both", start, end),
    ):
        table.row(name, *(f"{b - a:.1f}" for a, b in zip(since, until, strict=True)))


def _scoring(inner: Tensor) -> None:
    table = Table("Scoring one candidate", "from", "milliseconds", "ratio")
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 8, (CANDIDATES, HEADS), generator=rng)
    error = WithinClusterError(inner)
    error.of_labels(labels)
    fast = statistics.median(_timed(error.of_labels, labels)[0] for _ in range(50)) / CANDIDATES
    heads = torch.cat([projection.weight for projection in next(_layers())], dim=1)
    slow: list[float] = []
    for row in labels[:5].tolist():
        seconds, wse = _timed(_from_weights, heads, row)
        assert abs(wse - float(error.of_labels(torch.tensor([row])))) < 1e-4 * wse
        slow.append(seconds)
    table.row(f"Gram matrix, {CANDIDATES} at once", f"{fast * 1e3:.4f}", "1")
    table.row(
        "weights, float32", f"{statistics.median(slow) * 1e3:.1f}", f"{statistics.median(slow) / fast:,.0f}"
    )


def _from_weights(heads: Tensor, labels: list[int]) -> float:
    """The weight-sharing error as it is defined: squared distances of the members to their mean."""
    total = 0.0
    for label in set(labels):
        members = heads[[head for head, other in enumerate(labels) if other == label]]
        total += float((members - members.mean(0)).square().sum())
    return total


def _layers() -> Iterator[tuple[Projection, Projection]]:
    """Key and value projections, one layer after the other."""
    for index in range(LAYERS):
        rng = torch.Generator().manual_seed(index)
        key, value = (torch.randn(HEADS, HEAD_DIM, WIDTH, generator=rng) for _ in range(2))
        yield Projection(key), Projection(value)


def _plain_matmul() -> list[float]:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=rng) for _ in range(2))
    return sorted(_timed(torch.matmul, a, b)[0] for _ in range(5))[2:]


def _gram_row(table: Table, name: str, seconds: list[float], flops: float, plain: float) -> None:
    median = statistics.median(seconds)
    rate = flops / median / 1e9
    table.row(name, _cell([median, *seconds]), f"{rate:.1f}", f"{100 * rate / plain:.0f} %")


def _cell(seconds: list[float]) -> str:
    return f"{seconds[0]:.3f} ({max(seconds):.3f})"


def _timed(work: Callable[..., Any], *inputs: Any, **named: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work(*inputs, **named)
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
