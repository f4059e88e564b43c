"""What attention over a cache costs for one new position, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/decode_attention.py

32 query heads of width 128 over 8 cached heads with 8, 7, 5, 4, 3, 2, 2 and 1 query heads, in shuffled order, against a
multi-head cache of 32. Every way takes its turn in every round, after a read of other memory, as in a model the weights and
the other layers' caches come in between; times are the processor's own, of the one thread, medians over the rounds and, in
brackets, the best. The bound is the time to read as many bytes as the grouped cache has, from a buffer far larger than the
processor's caches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from common import Table, environment
from gqakit.models.remote_code import attention
from gqakit.models.remote_code.attention import GroupedHeads
from gqakit.models.remote_code.heads import HeadMaps

HEADS, HEAD_DIM = 32, 128
GROUPS = (8, 7, 5, 4, 3, 2, 2, 1)
BUFFER_BYTES = 1 << 29
EVICTED_BYTES = 1 << 26


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=20, help="time for the rounds of each table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(environment())
    for name in options.dtype:
        for positions in options.positions:
            for batch in options.batch:
                dtype = getattr(torch, name)
                gigabytes = 2 * batch * HEADS * positions * HEAD_DIM * dtype.itemsize / 1e9
                if gigabytes > 8:
                    print(
                        f"\n{name}, batch {batch}, {positions}: left out, multi-head takes {gigabytes:.0f} GB"
                    )
                    continue
                _table(batch, positions, dtype, options.seconds)


def _table(batch: int, positions: int, dtype: torch.dtype, seconds: float) -> None:
    ways, grouped_bytes = _ways(batch, positions, dtype)
    evict = _reader(EVICTED_BYTES)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[next(iter(times))]) < 5:
        for name, way in ways.items():
            evict()
            begin = time.thread_time()
            way()
            times[name].append(time.thread_time() - begin)
    rounds = len(times[next(iter(times))])
    header = ("how", "ms, median (best)", "times as fast as multi-head", "times the bound")
    table = Table(f"{dtype}, batch {batch}, {positions} positions, {rounds} rounds", *header)
    baseline, bound = times[_fair(times)], times["bound"]
    for name, each in times.items():
        scale = 4 if name.startswith("multi-head") else 1
        table.row(
            name,
            f"{statistics.median(each) * 1e3:.2f} ({min(each) * 1e3:.2f})",
            f"{statistics.median(baseline) / statistics.median(each):.2f} ({min(baseline) / min(each):.2f})",
            f"{statistics.median(each) / statistics.median(bound) / scale:.2f} ({min(each) / min(bound) / scale:.2f})",
        )
    rate = grouped_bytes / statistics.median(bound) / 1e9
    print(
        f"\nBound: {grouped_bytes / 1e6:.0f} MB at {rate:.1f} GB/s. Multi-head against a bound of 4 times that."
    )


def _ways(batch: int, positions: int, dtype: torch.dtype) -> tuple[dict[str, Callable[[], object]], int]:
    rng = torch.Generator().manual_seed(0)

    def states(heads: int, length: int) -> Tensor:
        # Filled in place a head at a time: a large cache never exists in float32 as well.
        new = torch.empty(batch, heads, length, HEAD_DIM, dtype=dtype)
        for row in new.flatten(0, 1):
            row.copy_(torch.randn(length, HEAD_DIM, generator=rng))
        return new

    count = len(GROUPS)
    keys = _shuffled(GROUPS, rng)
    unequal = GroupedHeads(HeadMaps(keys, keys))
    two_maps = GroupedHeads(HeadMaps(keys, _shuffled(GROUPS, rng)))
    shuffled = _shuffled((HEADS // count,) * count, rng)
    equal = GroupedHeads(HeadMaps(shuffled, shuffled))
    query, key, value = states(HEADS, 1), states(count, positions), states(count, positions)
    all_keys, all_values = states(HEADS, positions), states(HEADS, positions)

    def attend(heads: GroupedHeads) -> Callable[[], Tensor]:
        return lambda: heads.attend(query, key, value, None, 0.0, HEAD_DIM**-0.5, False)

    def without_numba(way: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            compiled = attention.compiled_kernels
            attention.compiled_kernels = lambda: None
            try:
                return way()
            finally:
                attention.compiled_kernels = compiled

        return run

    def multi_head() -> Tensor:
        return scaled_dot_product_attention(query, all_keys, all_values)

    def multi_head_four_rows() -> Tensor:
        rows = query.repeat(1, 1, 4, 1)
        return scaled_dot_product_attention(rows, all_keys, all_values)[:, :, :1]

    ways: dict[str, Callable[[], object]] = {"multi-head, SDPA": multi_head}
    if dtype != torch.float32:
        ways["multi-head, SDPA, each query four times"] = multi_head_four_rows
    ways["unequal groups"] = attend(unequal)
    ways["unequal groups, keys and values grouped apart"] = attend(two_maps)
    ways["equal groups in any order"] = attend(equal)
    ways["unequal groups, without numba"] = without_numba(attend(unequal))
    ways["equal groups in order, SDPA with enable_gqa"] = lambda: scaled_dot_product_attention(
        query, key, value, enable_gqa=True
    )
    size = key.nbytes + value.nbytes
    ways["bound"] = _reader(size)
    return ways, size


def _reader(size: int) -> Callable[[], object]:
    """Reads that number of bytes, each time the next ones of the buffer: `torch.dot` of two halves."""
    half = size // 8
    buffer = torch.ones(max(BUFFER_BYTES // 4, 2 * half))
    blocks = [buffer[start : start + 2 * half] for start in range(0, len(buffer) - 2 * half + 1, 2 * half)]
    turn = iter(range(1 << 62))

    def read() -> None:
        block = blocks[next(turn) % len(blocks)]
        torch.dot(block[:half], block[half:])

    return read


def _fair(times: dict[str, list[float]]) -> str:
    """The faster multi-head way."""
    return min((n for n in times if n.startswith("multi-head")), key=lambda n: statistics.median(times[n]))


def _shuffled(sizes: tuple[int, ...], rng: torch.Generator) -> tuple[int, ...]:
    labels = torch.tensor([head for head, size in enumerate(sizes) for _ in range(size)])
    return tuple(labels[torch.randperm(len(labels), generator=rng)].tolist())


if __name__ == "__main__":
    main()
