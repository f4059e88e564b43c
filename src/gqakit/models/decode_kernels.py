"""Attention's two products at decode, compiled for the processor by numba: an accelerator of `gqakit[cpu]`.

The model code in a checkpoint calls `scores` and `mixture` where this package and numba are installed, and does
without them elsewhere. A cached row is read once and used by all query heads of its group while it is in a
register; bfloat16 and float16 are widened to float32 as they are read. Plain loops that LLVM vectorises by itself
were measured to take 1.4 (float32) to 2.5 times (bfloat16) as long: it adds up every product of a query and a key
by itself, and keeps no tile of sums in registers.

All in one file: numba keeps compiled code on disk until the file of a function changes, and looks at no other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

try:
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic as _intrinsic
except ImportError as error:
    raise ImportError("the kernels for decoding on a CPU need numba: pip install 'gqakit[cpu]'") from error

LANES = 8  # float32 in a register of AVX2, which has 16: a tile takes 8 for its sums

BLOCK = (
    16  # cached rows that all query heads of a group use before the next ones: they stay in the level-1 cache
)
AHEAD = 16  # rows between the one in use and the one that memory is asked for

# Threads share the cache in pieces of PIECE positions, if it has SHARED numbers in all.
PIECE = 512
SHARED = 1 << 20

DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.int16, torch.float16: torch.uint16}
"""What is multiplied, by how its bits are handed to the kernels: numba has no half precision on a CPU."""

compiled = njit(nogil=True, error_model="numpy", boundscheck=False, cache=True)
intrinsic: Any = _intrinsic  # its functions are called without the `typing` they are defined with


def usable(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels take these: plain tensors on a CPU, nothing to differentiate, a multiple of 8 wide."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return (
        not tracing
        and key.shape[2] >= LANES
        and all(
            type(each) is Tensor
            and each.device.type == "cpu"
            and each.dtype in DTYPES
            and each.stride(-1) == 1
            and each.shape[-1] % LANES == 0
            and not (each.requires_grad and torch.is_grad_enabled())
            for each in (query, key, value)
        )
    )


def scores(query: Tensor, keys: Tensor, head_of_query: Sequence[int]) -> Tensor:
    """The product of each query with all keys of its key head.

    Args:
        query: `[B, H, T, d]`, any precision.
        keys: `[B, heads, S, d]`, at least 8 positions.
        head_of_query: the key head of each query head.

    Returns:
        `[B, H, T, S]` float32.
    """
    batch, heads, length, _ = query.shape
    out = torch.empty(batch, heads, length, keys.shape[2])
    _run(False, query.float().contiguous(), keys, head_of_query, [out])
    return out


def mixture(weights: Tensor, values: Tensor, head_of_query: Sequence[int]) -> Tensor:
    """The sum of the values of each query's value head, by its weights.

    Args:
        weights: `[B, H, T, S]`.
        values: `[B, heads, S, d]`.
        head_of_query: the value head of each query head.

    Returns:
        `[B, H, T, d]` float32.
    """
    batch, heads, length, _ = weights.shape
    # Threads that share positions add up different parts of the same sums, so each has sums of its own.
    outs = torch.zeros(_num_threads(values), batch, heads, length, values.shape[3])
    _run(True, weights.float().contiguous(), values, head_of_query, list(outs))
    return outs[0] if len(outs) == 1 else outs.sum(0)


class Cache(NamedTuple):
    """Keys or values `[B, heads, S, d]` as the kernels take them: the whole storage, flat, and where to find what."""

    numbers: np.ndarray
    first: int
    batch_step: int
    head_step: int
    step: int
    batch: int
    positions: int
    piece: int


def _run(
    mixes: bool, given: Tensor, states: Tensor, head_of_query: Sequence[int], outs: Sequence[Tensor]
) -> None:
    """One of the two products on all threads; each has an `outs` of its own, or all share the one there is."""
    threads = _num_threads(states)
    batch, _, positions, _ = states.shape
    bits = states.view(DTYPES[states.dtype])
    flat = bits.as_strided((states.untyped_storage().nbytes() // states.itemsize,), (1,), 0).numpy()
    piece = PIECE if threads > 1 else positions
    batch_step, head_step, step, _ = states.stride()
    cache = Cache(flat, int(states.storage_offset()), batch_step, head_step, step, batch, positions, piece)
    groups = _rows_of_head(tuple(head_of_query), given.shape[2])
    rows = given.flatten(0, 2).numpy()  # [B · H · T, d or S]

    def run(thread: int) -> None:
        out = outs[thread % len(outs)].flatten(0, 2).numpy()
        _share(mixes, rows, cache, groups, out, (thread, threads))

    others = [_pool(os.getpid(), threads - 1).submit(run, thread) for thread in range(1, threads)]
    run(0)
    for other in others:
        other.result()


@lru_cache(maxsize=1024)  # a few for each layer
def _rows_of_head(head_of_query: tuple[int, ...], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `[query heads · length]` in order of the cached head, and where each head's begin, with the end."""
    labels = np.repeat(np.asarray(head_of_query, dtype=np.int64), length)
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))]).astype(np.int64)
    return np.argsort(labels, kind="stable"), starts


def _num_threads(states: Tensor) -> int:
    """How many threads share the work."""
    return torch.get_num_threads() if states.numel() >= SHARED else 1


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads beside the caller's own; a forked process gets its own."""
    return ThreadPoolExecutor(threads, "gqakit-decode")


@compiled
def _share(mixes, given, cache, groups, out, share):
    """One thread's share of a product.

    Args:
        mixes: whether values are summed by weights, or else keys multiplied with queries.
        given: float32, the weights `[B · rows, S]` or the queries `[B · rows, d]`.
        cache: the values or the keys.
        groups: rows in order of the cached head that they belong to, and where each head's begin.
        out: float32, the sums `[B · rows, d]` or the scores `[B · rows, S]`.
        share: this thread, and how many there are.
    """
    order, starts = groups
    heads, pieces = len(starts) - 1, -(-cache.positions // cache.piece)
    for task in range(share[0], cache.batch * heads * pieces, share[1]):
        b, h = task // pieces // heads, task // pieces % heads
        at = cache.first + b * cache.batch_step + h * cache.head_step
        begin = task % pieces * cache.piece
        end = min(begin + cache.piece, cache.positions)
        r = b * len(order)
        for s in range(begin, end, BLOCK):
            span = (at, cache.step, s, min(s + BLOCK, end))
            j, last = starts[h], starts[h + 1] - 1
            while (
                j < last - 1
            ):  # four rows at a time; of three the last one twice: both copies get the same sums
                fourth = min(j + 3, last)
                rows = (r + order[j], r + order[j + 1], r + order[j + 2], r + order[fourth])
                _multiply(mixes, given, cache.numbers, out, rows, span)
                j += 4
            if j == last:
                _multiply(mixes, given, cache.numbers, out, (r + order[j],), span)
            elif j < last:
                _multiply(mixes, given, cache.numbers, out, (r + order[j], r + order[last]), span)


@compiled
def _multiply(mixes, given, numbers, out, rows, span):
    """The product of 1, 2 or 4 rows with a block of the cache: positions `begin` to `end` of the head at `at`."""
    at, step, begin, end = span
    wide = LANES // len(rows)  # registers of sums for each row
    if mixes:
        dim, i = out.shape[1], 0
        while i + wide * LANES <= dim:
            _mix_wide(given, numbers, out, rows, (at + i, step, begin, end, i))
            i += wide * LANES
        while i < dim:
            _mix_narrow(given, numbers, out, rows, (at + i, step, begin, end, i))
            i += LANES
    else:
        for s in range(begin, end, wide):
            # The last ones again where they are fewer than a tile has: the same products, written twice.
            s = min(s, out.shape[1] - wide)
            _dots(given, numbers, out, rows, (at + s * step, step, s))


# What follows writes LLVM instructions. A tile is 1, 2 or 4 rows by 8, 4 or 2 columns: 8 registers of sums.

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INDEX = ir.IntType(32)
_ELEMENTS = {types.float32: ir.FloatType(), types.int16: ir.IntType(16), types.uint16: ir.HalfType()}


class _Array:
    """An array's numbers inside compiled code: 16 bits, signed, are bfloat16, unsigned float16."""

    def __init__(self, context: Any, builder: Any, array_type: Any, value: Any) -> None:
        self.builder, self.dtype = builder, array_type.dtype
        self.element = _ELEMENTS[array_type.dtype]
        array = context.make_array(array_type)(context, builder, value)
        self.data = builder.bitcast(array.data, self.element.as_pointer())
        self.width = cgutils.unpack_tuple(builder, array.shape)[-1]

    def row(self, row: Any, column: Any) -> Any:
        """Index of a number of a two-dimensional array."""
        return self.builder.add(self.builder.mul(row, self.width), column)

    def address(self, index: Any, element: Any) -> Any:
        """Where a number is, as a pointer to `element`."""
        return self.builder.bitcast(self.builder.gep(self.data, [index]), element.as_pointer())

    def load(self, index: Any) -> Any:
        """Eight numbers, widened."""
        builder = self.builder
        read = builder.load(self.address(index, ir.VectorType(self.element, LANES)), align=2)
        if self.dtype == types.float32:
            return read
        if self.dtype == types.uint16:
            return builder.fpext(read, _VECTOR)
        wide = ir.VectorType(_INDEX, LANES)  # a bfloat16 is the upper half of a float32
        return builder.bitcast(
            builder.shl(builder.zext(read, wide), ir.Constant(wide, [16] * LANES)), _VECTOR
        )

    def repeat(self, index: Any) -> Any:
        """One number in all eight places."""
        empty = ir.Constant(_VECTOR, ir.Undefined)
        one = self.builder.insert_element(
            empty, self.builder.load(self.builder.gep(self.data, [index])), _INDEX(0)
        )
        return self.builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))

    def store(self, index: Any, vector: Any) -> None:
        """Write a vector of float32."""
        self.builder.store(vector, self.address(index, vector.type), align=4)

    def fetch(self, index: Any) -> None:
        """Ask memory for a number; past the end nothing happens."""
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INDEX, _INDEX, _INDEX])
        prefetch = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        self.builder.call(
            prefetch, [self.address(index, ir.IntType(8)), *map(_INDEX, (0, 3, 1))]
        )  # to read, to keep, data


def _add_product(builder: Any, total: Any, one: Any, two: Any) -> None:
    """`total += one · two`, in one step where the processor has it."""
    product = builder.fmul(one, two, flags=("contract",))
    builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)


@intrinsic
def _dots(typing: Any, queries: Any, keys: Any, out: Any, rows: Any, at: Any) -> Any:
    """`out[row, s + n] = queries[row] · key n`, for each of the rows; `at` is the first key, their step, and s."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        queries, keys, out = map(_Array, [context] * 3, [builder] * 3, signature.args, args)
        rows, (first, step, s) = (cgutils.unpack_tuple(builder, each) for each in args[3:])
        wide = LANES // len(rows)
        index = step.type
        places = [builder.add(first, builder.mul(step, index(n))) for n in range(wide)]
        ahead = builder.add(first, builder.mul(step, index(AHEAD)))
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in places] for _ in rows]
        with cgutils.for_range_slice(builder, index(0), queries.width, index(LANES), index) as (i, _):
            for n in range(wide // 2):  # as many numbers as the tile uses, by lines of 64 bytes
                here = builder.add(builder.mul(i, index(wide)), index(16 * n))
                keys.fetch(builder.add(ahead, here))
            columns = [keys.load(builder.add(place, i)) for place in places]
            for row, sums in zip(rows, totals, strict=True):
                query = queries.load(queries.row(row, i))
                for total, column in zip(sums, columns, strict=True):
                    _add_product(builder, total, column, query)
        joined = _sums(builder, [builder.load(total) for sums in totals for total in sums])
        for n, row in enumerate(rows):
            lanes = ir.Constant(ir.VectorType(_INDEX, wide), list(range(n * wide, n * wide + wide)))
            out.store(out.row(row, s), builder.shuffle_vector(joined, joined, lanes))
        return context.get_dummy_value()

    return types.void(queries, keys, out, rows, at), codegen


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """The sums of eight vectors, in their order, as one vector."""

    def halves(one: Any, two: Any, low: list[int], high: list[int]) -> Any:
        masks = (ir.Constant(ir.VectorType(_INDEX, LANES), places) for places in (low, high))
        return builder.fadd(*(builder.shuffle_vector(one, two, mask) for mask in masks))

    # Vectors 0 and 4 become one, of their halves; from there on each half of a register goes its own way.
    low, high = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    fours = [halves(vectors[n], vectors[n + 4], low, high) for n in range(4)]
    even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
    twos = halves(fours[0], fours[1], even, odd), halves(fours[2], fours[3], even, odd)
    return halves(*twos, even, odd)


def _mixer(narrow: bool) -> Any:
    """The intrinsic for 1, 2 or 4 rows of sums and 64, 32 or 16 channels, or for 8 channels only."""

    @intrinsic
    def mix(typing: Any, weights: Any, values: Any, out: Any, rows: Any, at: Any) -> Any:
        """`out[row, channels] += Σ_s weights[row, s] · value s`; `at`: value 0, its step, s from, to, first channel."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, values, out = map(_Array, [context] * 3, [builder] * 3, signature.args, args)
            rows, (first, step, begin, end, channel) = (
                cgutils.unpack_tuple(builder, each) for each in args[3:]
            )
            wide = 1 if narrow else LANES // len(rows)
            index = step.type
            offsets = [index(n * LANES) for n in range(wide)]
            places = [[out.row(row, builder.add(channel, each)) for each in offsets] for row in rows]
            totals = [[cgutils.alloca_once_value(builder, out.load(p)) for p in each] for each in places]
            with cgutils.for_range_slice(builder, begin, end, index(1), index) as (s, _):
                value = builder.add(first, builder.mul(s, step))
                if not narrow and len(rows) == 4:  # fewer rows are done before memory answers
                    values.fetch(builder.add(value, builder.mul(step, index(BLOCK))))
                columns = [values.load(builder.add(value, each)) for each in offsets]
                for row, sums in zip(rows, totals, strict=True):
                    weight = weights.repeat(weights.row(row, s))
                    for total, column in zip(sums, columns, strict=True):
                        _add_product(builder, total, weight, column)
            for row_places, sums in zip(places, totals, strict=True):
                for place, total in zip(row_places, sums, strict=True):
                    out.store(place, builder.load(total))
            return context.get_dummy_value()

        return types.void(weights, values, out, rows, at), codegen

    return mix


_mix_wide, _mix_narrow = _mixer(narrow=False), _mixer(narrow=True)
