"""What planning one layer takes at the shapes of 7B and 70B models without shared heads: 32 × 128 × 4,096, 64 × 128 × 8,192.

    python benchmarks/layer_planning.py [--shape 7b] [--heads random] [--against 4,8,16]

Weights are random bfloat16, or structured: every four heads are mixtures of one base, and noise. Prints processor seconds of
each step (statistics of heads, every number of key heads and of value heads, bounds), the peak memory of the process, and
what a float32 matrix product takes in the same process, since processors that others share are slower. With
`--against` the search as it was before, one number of groups at a time in float64, is run for these numbers, and the
groups of both are scored alike in float64. That takes minutes for each number.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import torch

from common import Table, environment
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.merging import RULES
from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats, LayerStatistics
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import Sizes
from gqakit.planning.layer_features import LayerFeatures, Side
from one_by_one import local_partition

SHAPES = {"7b": (32, 128, 4096), "70b": (64, 128, 8192)}
SIDES: tuple[Side, Side] = ("key", "value")


def main() -> None:
    """Measure each shape and kind of heads in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--heads", choices=("random", "structured"), action="append")
    parser.add_argument("--against", default="", help="numbers of groups to search the old way too")
    parser.add_argument("--method", default="optimal", choices=METHODS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes, kinds = options.shape or list(SHAPES), options.heads or ["random", "structured"]
    if options.one:
        measure(shapes[0], kinds[0], options.method, [int(n) for n in options.against.split(",") if n])
        return
    print(environment())
    for shape in shapes:
        for kind in kinds:
            again = ["--shape", shape, "--heads", kind, "--method", options.method, "--one"]
            subprocess.run([sys.executable, __file__, *again, "--against", options.against], check=True)


def measure(shape: str, kind: str, method_name: str, against: list[int]) -> None:
    """One layer: the time of each step, and both searches' errors."""
    heads, dim, width = SHAPES[shape]
    features = layer(heads, dim, width, structured=kind == "structured")
    before = peak()
    title = f"{heads} {kind} heads of width {dim}, model width {width}, {method_name}"
    table = Table(title, "step", "processor seconds")
    table.row("a float32 matrix product, 2,048 cubed, 10 times", f"{_product():.2f}")
    total, method = 0.0, METHODS[method_name]

    def step(name: str, since: float) -> None:
        nonlocal total
        spent = time.process_time() - since
        total += spent
        table.row(name, f"{spent:.1f}")

    start = time.process_time()
    sides: dict[Side, HeadStats] = {side: features.sides(side)[0] for side in SIDES}
    step("statistics of heads", start)
    counts = {n: Sizes(1, heads - n + 1) for n in range(1, heads)}
    found: dict[Side, Any] = {}
    for side in SIDES:
        start = time.process_time()
        known = features.heads(RULES["fold"], side)
        found[side] = method.groups(known, counts, seed=f"0/0/{side}")
        step(f"{side}s: groups for each number from 1 to {heads - 1}", start)
        start = time.process_time()
        for partition in found[side].values():
            _ = sum(map(known.cost, partition.groups)), method.gap(known, partition)
        step(f"{side}s: errors and bounds of all numbers", start)
    table.row("all", f"{total:.1f}")
    print(f"\npeak memory {peak():.2f} GB, of which before planning {before:.2f} GB", flush=True)
    if against:
        compare(sides, found, against)


def compare(sides: dict[Side, HeadStats], found: dict[Side, Any], against: list[int]) -> None:
    """Both searches' errors, relative to losing all heads, on the same scores."""
    header = ("heads", "groups", "at once", "one by one", "difference", "processor seconds of one by one")
    table = Table("Error of fold, scored in float64", *header)
    worst = -1.0
    for side, stats in sides.items():
        exact = HeadStats(
            stats.gram.double(), stats.metric, stats.scale, stats.channels, stats.distances, stats.frequencies
        )
        cost, energy = RULES["fold"].costs(exact), float(exact.energy().sum())
        for count in against:
            start = time.process_time()
            sizes, rng = Sizes(1, stats.num_heads - count + 1), random.Random(f"0/0/{side}/{count}")
            old = local_partition(stats.num_heads, count, cost, sizes=sizes, rng=rng)
            spent = time.process_time() - start
            ours, theirs = (sum(map(cost, p.groups)) / energy for p in (found[side][count], old))
            worst = max(worst, ours / theirs - 1)
            cells = f"{ours:.5f}", f"{theirs:.5f}", f"{ours / theirs - 1:+.3%}", f"{spent:.0f}"
            table.row(f"{side}s", str(count), *cells)
    print(f"\nmost that the search at once is worse: {worst:+.3%}")


def layer(heads: int, dim: int, width: int, *, structured: bool) -> LayerFeatures:
    """One layer in bfloat16, with statistics of random inputs whose channels differ in size."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def projection() -> Projection:
        weight = normal(heads, dim, width) / width**0.5
        if structured:
            base = normal(heads // 4, dim, width) / width**0.5
            mix = torch.eye(dim) + 0.3 * normal(heads, dim, dim) / dim**0.5
            for head in range(heads):
                weight[head] = 0.6 * weight[head] + mix[head] @ base[head % len(base)]
        return Projection(weight.bfloat16())

    def moment() -> torch.Tensor:
        spread = torch.linspace(0.05, 2, width)[torch.randperm(width, generator=generator)]
        inputs = torch.cat([normal(2 * width, width) * spread, torch.ones(2 * width, 1)], dim=1)
        return inputs.T @ inputs / len(inputs)

    output = (normal(heads, width, dim) / width**0.5).bfloat16()
    weights = AttentionWeights(projection(), projection(), projection(), output)
    position = torch.arange(512.0)
    distances = torch.stack([(1 + position) ** -(0.7 + 0.05 * (head % 8)) for head in range(heads)])
    frequencies = 10000.0 ** -(torch.arange(dim // 2) / (dim / 2)).double()
    spec = SimpleNamespace(channels=Channels.rotary(dim), behind_norm=None, hidden_size=width)
    return LayerFeatures(
        cast(Any, spec), weights, LayerStatistics(moment(), moment(), distances, frequencies)
    )


def _product() -> float:
    a = torch.randn(2048, 2048)
    start = time.process_time()
    for _ in range(10):
        _ = a @ a
    return time.process_time() - start


def peak() -> float:
    """The most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
