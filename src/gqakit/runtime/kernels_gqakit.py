"""Attention's two products at decode, compiled for the processor by numba.

A cached row is read once and used by all query heads that share it, in registers of eight float32; bfloat16 and
float16 are widened as they are read. PyTorch's matrix products of few rows take two to three times as long as the
read of what they multiply. This file is copied into every grouped checkpoint, so it imports nothing of gqakit;
without numba nothing here can be used, and `attention_gqakit` does without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from llvmlite import ir
    from numba import extending, njit, types
    from numba.core import cgutils
    from numba.extending import models, register_model
except ImportError as error:
    raise ImportError("the kernels for decoding on a CPU need numba: pip install numba") from error

LANES = 8
DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.int16, torch.float16: torch.uint16}
"""What is multiplied, by how its bits are handed to the kernels."""

# Cached rows are taken in blocks that stay in the first-level cache while all query heads of a group use them.
BLOCK = 16
AHEAD = 16  # rows between the one in use and the one that is asked of memory

# Threads share the cache in pieces of so many positions, if it has so many numbers in all.
PIECE = 512
SHARED = 1 << 20

intrinsic: Any = extending.intrinsic  # its functions are called without the `typing` they are defined with

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_COMPILED = {"nogil": True, "error_model": "numpy", "boundscheck": False, "cache": True}


class GroupRows:
    """The query heads of each cached head, for the kernels.

    Args:
        head_of_query: for each query head the cached head that it reads, labels 0..n-1.
    """

    def __init__(self, head_of_query: Sequence[int]) -> None:
        labels = np.asarray(head_of_query, dtype=np.int64)
        self.heads = np.argsort(labels, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(labels))]).astype(np.int64)

    def rows(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `[query heads · length]` in order of the cached head, and where each of those begins."""
        if length == 1:
            return self.heads, self.starts
        return (self.heads[:, None] * length + np.arange(length)).reshape(-1), self.starts * length


def usable(*states: Tensor) -> bool:
    """Whether the kernels take these: plain tensors on a CPU, nothing to differentiate, a multiple of 8 wide."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not tracing and all(
        type(each) is Tensor
        and each.device.type == "cpu"
        and each.dtype in DTYPES
        and each.stride(-1) == 1
        and each.shape[-1] % LANES == 0
        and not (each.requires_grad and torch.is_grad_enabled())
        for each in states
    )


def scores(query: Tensor, keys: Tensor, groups: GroupRows) -> Tensor:
    """The product of each query with all keys of the head that it reads.

    Args:
        query: `[B, H, T, d]`, any precision.
        keys: `[B, heads, S, d]`.
        groups: the queries of each key head.

    Returns:
        `[B, H, T, S]` float32.
    """
    batch, heads, length, _ = query.shape
    out = torch.empty(batch, heads, length, keys.shape[2])
    rows = query.float().contiguous()
    _run(_scores, rows, keys, groups, length, [out])
    return out


def mixture(weights: Tensor, values: Tensor, groups: GroupRows) -> Tensor:
    """The sum of the values of the head that each query reads, by its weights.

    Args:
        weights: `[B, H, T, S]`.
        values: `[B, heads, S, d]`.
        groups: the queries of each value head.

    Returns:
        `[B, H, T, d]` float32.
    """
    batch, heads, length, _ = weights.shape
    outs = torch.zeros(_threads(values), batch, heads, length, values.shape[3])
    _run(_mixture, weights.float().contiguous(), values, groups, length, list(outs))
    return outs[0] if len(outs) == 1 else outs.sum(0)


def _run(
    kernel: Callable[..., None],
    rows: Tensor,
    states: Tensor,
    groups: GroupRows,
    length: int,
    outs: Sequence[Tensor],
) -> None:
    """A kernel on all threads; each has an `outs` of its own, or all share the one there is."""
    batch, _, positions, dim = states.shape
    order, starts = groups.rows(length)
    bits = states.view(DTYPES[states.dtype])
    flat = bits.as_strided((states.untyped_storage().nbytes() // states.itemsize,), (1,), 0).numpy()
    strides = states.storage_offset(), *states.stride()[:3]
    threads = _threads(states)
    piece = PIECE if threads > 1 else positions
    shape = batch, positions, dim, piece
    given = rows.view(-1).numpy(), flat, strides, shape, order, starts
    calls = [(*given, outs[one % len(outs)].view(-1).numpy(), one, threads) for one in range(threads)]
    if threads == 1:
        kernel(*calls[0])
        return
    others = [_pool(os.getpid(), threads - 1).submit(kernel, *call) for call in calls[1:]]
    kernel(*calls[0])
    for other in others:
        other.result()


def _threads(states: Tensor) -> int:
    """How many threads share the work."""
    return torch.get_num_threads() if states.numel() >= SHARED else 1


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads beside the caller's own; a forked process gets its own."""
    return ThreadPoolExecutor(threads, "gqakit-decode")


# Eight float32 in a register, as a type that compiled functions can hold.


class _Float8(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Float8")


_float8 = _Float8()


@register_model(_Float8)
class _Float8Model(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _VECTOR)


def _element(array: Any) -> Any:
    """The LLVM type of an array's numbers: 16 bits, signed, are a bfloat16, unsigned a float16."""
    return {types.float32: ir.FloatType(), types.int16: ir.IntType(16), types.uint16: ir.HalfType()}[
        array.dtype
    ]


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Where eight numbers of an array begin."""
    element = _element(array_type)
    data = context.make_array(array_type)(context, builder, array).data
    first = builder.gep(builder.bitcast(data, element.as_pointer()), [index])
    return builder.bitcast(first, ir.VectorType(element, LANES).as_pointer())


@intrinsic
def _load(typing: Any, array: Any, index: Any) -> Any:
    """`array[index : index + 8]`, widened."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        address = _address(context, builder, array_type, *args)
        if array_type.dtype == types.float32:
            return builder.load(address, align=4)
        read = builder.load(address, align=2)
        if array_type.dtype == types.uint16:
            return builder.fpext(read, _VECTOR)
        wide = ir.VectorType(ir.IntType(32), LANES)
        return builder.bitcast(
            builder.shl(builder.zext(read, wide), ir.Constant(wide, [16] * LANES)), _VECTOR
        )

    return _float8(array, types.intp), codegen


@intrinsic
def _store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """`array[index : index + 8] = vector`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _float8), codegen


@intrinsic
def _fetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask memory for `array[index]`; past the end nothing happens."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bit, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(_address(context, builder, signature.args[0], *args), bit)
        kind = ir.FunctionType(ir.VoidType(), [bit, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [address, flag(0), flag(3), flag(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def _add_product(typing: Any, one: Any, two: Any, total: Any) -> Any:
    """`one · two + total`, in one step where the processor has it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(args[0], args[1], flags=("contract",))
        return builder.fadd(product, args[2], flags=("contract",))

    return _float8(_float8, _float8, _float8), codegen


@intrinsic
def _repeat(typing: Any, array: Any, index: Any) -> Any:
    """`array[index]`, float32, in all eight places."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], *args)
        number = builder.load(builder.bitcast(address, ir.FloatType().as_pointer()), align=4)
        empty, index = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
        one = builder.insert_element(empty, number, index(0))
        return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

    return _float8(array, types.intp), codegen


@intrinsic
def _zero(typing: Any) -> Any:
    """Eight zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, [0.0] * LANES)

    return _float8(), codegen


@intrinsic
def _sum(typing: Any, vector: Any) -> Any:
    """The sum of the eight."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, lanes, index = args[0], LANES, ir.IntType(32)
        while lanes > 1:
            lanes //= 2
            empty = ir.Constant(value.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(
                    value, empty, ir.Constant(ir.VectorType(index, lanes), list(range(at, at + lanes)))
                )
                for at in (0, lanes)
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, index(0))

    return types.float32(_float8), codegen


@intrinsic
def _sums(typing: Any, *vectors: Any) -> Any:
    """The sums of eight vectors, in their order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def halves(one: Any, two: Any, low: list[int], high: list[int]) -> Any:
            masks = (ir.Constant(ir.VectorType(ir.IntType(32), LANES), places) for places in (low, high))
            return builder.fadd(*(builder.shuffle_vector(one, two, mask) for mask in masks))

        # Vectors 0 and 4 become one, of their halves; from there on each half of a register goes its own way.
        (vectors,) = (cgutils.unpack_tuple(builder, each) for each in args)
        fours = [
            halves(vectors[n], vectors[n + 4], [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
            for n in range(4)
        ]
        even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
        low, high = halves(fours[0], fours[1], even, odd), halves(fours[2], fours[3], even, odd)
        return halves(low, high, even, odd)

    return _float8(types.StarArgTuple(vectors)), codegen


@intrinsic(prefer_literal=True)
def _lane(typing: Any, vector: Any, place: Any) -> Any:
    """One of the eight; the place is a constant."""
    if not isinstance(place, types.IntegerLiteral):
        return None
    constant = ir.IntType(32)(place.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], constant)

    return types.float32(_float8, place), codegen


# Keys: every product of up to 4 queries with 2 to 8 keys has a register; `q` are rows of `query`, `at` begins a key.


@njit(**_COMPILED)
def _dot(query, q, keys, at, dim):
    total = _zero()
    for i in range(0, dim, LANES):
        total = _add_product(_load(keys, at + i), _load(query, q + i), total)
    return _sum(total)


@njit(**_COMPILED)
def _dots_1(query, q, keys, at, step, count, dim, out, o):
    s = 0
    while s + 8 <= count:
        a0, a1, a2, a3 = _zero(), _zero(), _zero(), _zero()
        b0, b1, b2, b3 = _zero(), _zero(), _zero(), _zero()
        for i in range(0, dim, LANES):
            ahead = at + AHEAD * step + 8 * i
            _fetch(keys, ahead)
            _fetch(keys, ahead + 16)
            _fetch(keys, ahead + 32)
            _fetch(keys, ahead + 48)
            x = _load(query, q + i)
            k = at + i
            a0, a1 = _add_product(_load(keys, k), x, a0), _add_product(_load(keys, k + step), x, a1)
            k += 2 * step
            a2, a3 = _add_product(_load(keys, k), x, a2), _add_product(_load(keys, k + step), x, a3)
            k += 2 * step
            b0, b1 = _add_product(_load(keys, k), x, b0), _add_product(_load(keys, k + step), x, b1)
            k += 2 * step
            b2, b3 = _add_product(_load(keys, k), x, b2), _add_product(_load(keys, k + step), x, b3)
        _store(out, o + s, _sums(a0, a1, a2, a3, b0, b1, b2, b3))
        at += 8 * step
        s += 8
    while s < count:
        out[o + s] = _dot(query, q, keys, at, dim)
        at += step
        s += 1


@njit(**_COMPILED)
def _dots_2(query, q0, q1, keys, at, step, count, dim, out, o0, o1):
    s = 0
    while s + 4 <= count:
        a0, a1, a2, a3 = _zero(), _zero(), _zero(), _zero()
        b0, b1, b2, b3 = _zero(), _zero(), _zero(), _zero()
        for i in range(0, dim, LANES):
            ahead = at + AHEAD * step + 4 * i
            _fetch(keys, ahead)
            _fetch(keys, ahead + 16)
            x, y = _load(query, q0 + i), _load(query, q1 + i)
            k = _load(keys, at + i)
            a0, b0 = _add_product(k, x, a0), _add_product(k, y, b0)
            k = _load(keys, at + step + i)
            a1, b1 = _add_product(k, x, a1), _add_product(k, y, b1)
            k = _load(keys, at + 2 * step + i)
            a2, b2 = _add_product(k, x, a2), _add_product(k, y, b2)
            k = _load(keys, at + 3 * step + i)
            a3, b3 = _add_product(k, x, a3), _add_product(k, y, b3)
        x = _sums(a0, a1, a2, a3, b0, b1, b2, b3)
        out[o0 + s], out[o0 + s + 1] = _lane(x, 0), _lane(x, 1)
        out[o0 + s + 2], out[o0 + s + 3] = _lane(x, 2), _lane(x, 3)
        out[o1 + s], out[o1 + s + 1] = _lane(x, 4), _lane(x, 5)
        out[o1 + s + 2], out[o1 + s + 3] = _lane(x, 6), _lane(x, 7)
        at += 4 * step
        s += 4
    while s < count:
        out[o0 + s], out[o1 + s] = _dot(query, q0, keys, at, dim), _dot(query, q1, keys, at, dim)
        at += step
        s += 1


@njit(**_COMPILED)
def _dots_4(query, q0, q1, q2, q3, keys, at, step, count, dim, out, o0, o1, o2, o3):
    s = 0
    while s + 2 <= count:
        a0, a1, a2, a3 = _zero(), _zero(), _zero(), _zero()
        b0, b1, b2, b3 = _zero(), _zero(), _zero(), _zero()
        for i in range(0, dim, LANES):
            _fetch(keys, at + AHEAD * step + 2 * i)
            k, n = _load(keys, at + i), _load(keys, at + step + i)
            x = _load(query, q0 + i)
            a0, b0 = _add_product(k, x, a0), _add_product(n, x, b0)
            x = _load(query, q1 + i)
            a1, b1 = _add_product(k, x, a1), _add_product(n, x, b1)
            x = _load(query, q2 + i)
            a2, b2 = _add_product(k, x, a2), _add_product(n, x, b2)
            x = _load(query, q3 + i)
            a3, b3 = _add_product(k, x, a3), _add_product(n, x, b3)
        x = _sums(a0, a1, a2, a3, b0, b1, b2, b3)
        out[o0 + s], out[o0 + s + 1] = _lane(x, 0), _lane(x, 4)
        out[o1 + s], out[o1 + s + 1] = _lane(x, 1), _lane(x, 5)
        out[o2 + s], out[o2 + s + 1] = _lane(x, 2), _lane(x, 6)
        out[o3 + s], out[o3 + s + 1] = _lane(x, 3), _lane(x, 7)
        at += 2 * step
        s += 2
    if s < count:
        out[o0 + s], out[o1 + s] = _dot(query, q0, keys, at, dim), _dot(query, q1, keys, at, dim)
        out[o2 + s], out[o3 + s] = _dot(query, q2, keys, at, dim), _dot(query, q3, keys, at, dim)


# Three rows go as four, the last of them twice: both copies then end as the same numbers.

# Values: 8 to 64 channels of up to 4 sums have a register each; `w` begins a query's weights, `o` its sum.


@njit(**_COMPILED)
def _mix_channels(weights, w, values, at, step, count, out, o):
    total = _load(out, o)
    for s in range(count):
        total = _add_product(_repeat(weights, w + s), _load(values, at + s * step), total)
    _store(out, o, total)


@njit(**_COMPILED)
def _mix_1(weights, w, values, at, step, count, dim, out, o):
    i = 0
    while i + 8 * LANES <= dim:
        a0, a1 = _load(out, o + i), _load(out, o + i + 8)
        a2, a3 = _load(out, o + i + 16), _load(out, o + i + 24)
        b0, b1 = _load(out, o + i + 32), _load(out, o + i + 40)
        b2, b3 = _load(out, o + i + 48), _load(out, o + i + 56)
        v = at + i
        for s in range(count):
            x = _repeat(weights, w + s)
            a0, a1 = _add_product(x, _load(values, v), a0), _add_product(x, _load(values, v + 8), a1)
            a2, a3 = _add_product(x, _load(values, v + 16), a2), _add_product(x, _load(values, v + 24), a3)
            b0, b1 = _add_product(x, _load(values, v + 32), b0), _add_product(x, _load(values, v + 40), b1)
            b2, b3 = _add_product(x, _load(values, v + 48), b2), _add_product(x, _load(values, v + 56), b3)
            v += step
        _store(out, o + i, a0)
        _store(out, o + i + 8, a1)
        _store(out, o + i + 16, a2)
        _store(out, o + i + 24, a3)
        _store(out, o + i + 32, b0)
        _store(out, o + i + 40, b1)
        _store(out, o + i + 48, b2)
        _store(out, o + i + 56, b3)
        i += 8 * LANES
    while i < dim:
        _mix_channels(weights, w, values, at + i, step, count, out, o + i)
        i += LANES


@njit(**_COMPILED)
def _mix_2(weights, w0, w1, values, at, step, count, dim, out, o0, o1):
    i = 0
    while i + 4 * LANES <= dim:
        a0, a1 = _load(out, o0 + i), _load(out, o0 + i + 8)
        a2, a3 = _load(out, o0 + i + 16), _load(out, o0 + i + 24)
        b0, b1 = _load(out, o1 + i), _load(out, o1 + i + 8)
        b2, b3 = _load(out, o1 + i + 16), _load(out, o1 + i + 24)
        v = at + i
        for s in range(count):
            x, y = _repeat(weights, w0 + s), _repeat(weights, w1 + s)
            z = _load(values, v)
            a0, b0 = _add_product(x, z, a0), _add_product(y, z, b0)
            z = _load(values, v + 8)
            a1, b1 = _add_product(x, z, a1), _add_product(y, z, b1)
            z = _load(values, v + 16)
            a2, b2 = _add_product(x, z, a2), _add_product(y, z, b2)
            z = _load(values, v + 24)
            a3, b3 = _add_product(x, z, a3), _add_product(y, z, b3)
            v += step
        _store(out, o0 + i, a0)
        _store(out, o0 + i + 8, a1)
        _store(out, o0 + i + 16, a2)
        _store(out, o0 + i + 24, a3)
        _store(out, o1 + i, b0)
        _store(out, o1 + i + 8, b1)
        _store(out, o1 + i + 16, b2)
        _store(out, o1 + i + 24, b3)
        i += 4 * LANES
    while i < dim:
        _mix_channels(weights, w0, values, at + i, step, count, out, o0 + i)
        _mix_channels(weights, w1, values, at + i, step, count, out, o1 + i)
        i += LANES


@njit(**_COMPILED)
def _mix_4(weights, w0, w1, w2, w3, values, at, step, count, dim, out, o0, o1, o2, o3):
    i = 0
    while i + 2 * LANES <= dim:
        a0, b0 = _load(out, o0 + i), _load(out, o0 + i + 8)
        a1, b1 = _load(out, o1 + i), _load(out, o1 + i + 8)
        a2, b2 = _load(out, o2 + i), _load(out, o2 + i + 8)
        a3, b3 = _load(out, o3 + i), _load(out, o3 + i + 8)
        v = at + i
        for s in range(count):
            _fetch(values, v + BLOCK * step)
            x, y = _load(values, v), _load(values, v + 8)
            z = _repeat(weights, w0 + s)
            a0, b0 = _add_product(z, x, a0), _add_product(z, y, b0)
            z = _repeat(weights, w1 + s)
            a1, b1 = _add_product(z, x, a1), _add_product(z, y, b1)
            z = _repeat(weights, w2 + s)
            a2, b2 = _add_product(z, x, a2), _add_product(z, y, b2)
            z = _repeat(weights, w3 + s)
            a3, b3 = _add_product(z, x, a3), _add_product(z, y, b3)
            v += step
        _store(out, o0 + i, a0)
        _store(out, o0 + i + 8, b0)
        _store(out, o1 + i, a1)
        _store(out, o1 + i + 8, b1)
        _store(out, o2 + i, a2)
        _store(out, o2 + i + 8, b2)
        _store(out, o3 + i, a3)
        _store(out, o3 + i + 8, b3)
        i += 2 * LANES
    while i < dim:
        _mix_channels(weights, w0, values, at + i, step, count, out, o0 + i)
        _mix_channels(weights, w1, values, at + i, step, count, out, o1 + i)
        _mix_channels(weights, w2, values, at + i, step, count, out, o2 + i)
        if o3 != o2:
            _mix_channels(weights, w3, values, at + i, step, count, out, o3 + i)
        i += LANES


# One thread's share of the blocks: `strides` are the cache's first number and the steps of batch, head and position.


@njit(**_COMPILED)
def _scores(query, keys, strides, shape, order, starts, out, first, threads):
    batch, positions, dim, piece = shape
    heads, rows, pieces = len(starts) - 1, len(order), -(-positions // piece)
    step = strides[3]
    for task in range(first, batch * heads * pieces, threads):
        b, h = task // pieces // heads, task // pieces % heads
        begin = task % pieces * piece
        end = min(begin + piece, positions)
        for s in range(begin, end, BLOCK):
            count = min(BLOCK, end - s)
            at = strides[0] + b * strides[1] + h * strides[2] + s * step
            j = starts[h]
            while j < starts[h + 1]:
                left = starts[h + 1] - j
                r0 = b * rows + order[j]
                o0 = r0 * positions + s
                if left == 1:
                    _dots_1(query, r0 * dim, keys, at, step, count, dim, out, o0)
                    j += 1
                    continue
                r1 = b * rows + order[j + 1]
                o1 = r1 * positions + s
                if left == 2:
                    _dots_2(query, r0 * dim, r1 * dim, keys, at, step, count, dim, out, o0, o1)
                    j += 2
                    continue
                r2, r3 = (
                    b * rows + order[j + 2],
                    b * rows + order[j + min(left - 1, 3)],
                )  # of three, one twice
                o2, o3 = r2 * positions + s, r3 * positions + s
                q0, q1, q2, q3 = r0 * dim, r1 * dim, r2 * dim, r3 * dim
                _dots_4(query, q0, q1, q2, q3, keys, at, step, count, dim, out, o0, o1, o2, o3)
                j += 4


@njit(**_COMPILED)
def _mixture(weights, values, strides, shape, order, starts, out, first, threads):
    batch, positions, dim, piece = shape
    heads, rows, pieces = len(starts) - 1, len(order), -(-positions // piece)
    step = strides[3]
    for task in range(first, batch * heads * pieces, threads):
        b, h = task // pieces // heads, task // pieces % heads
        begin = task % pieces * piece
        end = min(begin + piece, positions)
        for s in range(begin, end, BLOCK):
            count = min(BLOCK, end - s)
            at = strides[0] + b * strides[1] + h * strides[2] + s * step
            j = starts[h]
            while j < starts[h + 1]:
                left = starts[h + 1] - j
                r0 = b * rows + order[j]
                w0 = r0 * positions + s
                if left == 1:
                    _mix_1(weights, w0, values, at, step, count, dim, out, r0 * dim)
                    j += 1
                    continue
                r1 = b * rows + order[j + 1]
                w1 = r1 * positions + s
                if left == 2:
                    _mix_2(weights, w0, w1, values, at, step, count, dim, out, r0 * dim, r1 * dim)
                    j += 2
                    continue
                r2, r3 = (
                    b * rows + order[j + 2],
                    b * rows + order[j + min(left - 1, 3)],
                )  # of three, one twice
                w2, w3 = r2 * positions + s, r3 * positions + s
                o0, o1, o2, o3 = r0 * dim, r1 * dim, r2 * dim, r3 * dim
                _mix_4(weights, w0, w1, w2, w3, values, at, step, count, dim, out, o0, o1, o2, o3)
                j += 4
