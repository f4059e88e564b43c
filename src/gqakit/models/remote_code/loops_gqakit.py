"""The loops of attention's two products at decode, compiled for the processor by numba.

A cached row is read once and used by all query heads that share it, in registers of eight float32; bfloat16 and
float16 are widened as they are read. This file is copied into every grouped checkpoint, so it imports nothing of gqakit.
Only `kernels_gqakit` uses it. All that is compiled is in this one file, as numba renews what it keeps on disk by the file
of the function that is called.
"""

from __future__ import annotations

from .vectors_gqakit import (
    LANES,
    add_product,
    compiled,
    fetch,
    lane,
    load,
    repeat,
    store,
    sum_of,
    sums_of,
    zero,
)

# Cached rows are taken in blocks that stay in the first-level cache while all query heads of a group use them.
BLOCK = 16
AHEAD = 16  # rows between the one in use and the one that is asked of memory

# Keys: every product of up to 4 queries with 2 to 8 keys has a register; `q` are rows of `query`, `at` begins a key.


@compiled
def _dot(query, q, keys, at, dim):
    total = zero()
    for i in range(0, dim, LANES):
        total = add_product(load(keys, at + i), load(query, q + i), total)
    return sum_of(total)


@compiled
def _dots_1(query, q, keys, at, step, count, dim, out, o):
    s = 0
    while s + 8 <= count:
        a0, a1, a2, a3 = zero(), zero(), zero(), zero()
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        for i in range(0, dim, LANES):
            ahead = at + AHEAD * step + 8 * i
            fetch(keys, ahead)
            fetch(keys, ahead + 16)
            fetch(keys, ahead + 32)
            fetch(keys, ahead + 48)
            x = load(query, q + i)
            k = at + i
            a0, a1 = add_product(load(keys, k), x, a0), add_product(load(keys, k + step), x, a1)
            k += 2 * step
            a2, a3 = add_product(load(keys, k), x, a2), add_product(load(keys, k + step), x, a3)
            k += 2 * step
            b0, b1 = add_product(load(keys, k), x, b0), add_product(load(keys, k + step), x, b1)
            k += 2 * step
            b2, b3 = add_product(load(keys, k), x, b2), add_product(load(keys, k + step), x, b3)
        store(out, o + s, sums_of(a0, a1, a2, a3, b0, b1, b2, b3))
        at += 8 * step
        s += 8
    while s < count:
        out[o + s] = _dot(query, q, keys, at, dim)
        at += step
        s += 1


@compiled
def _dots_2(query, q0, q1, keys, at, step, count, dim, out, o0, o1):
    s = 0
    while s + 4 <= count:
        a0, a1, a2, a3 = zero(), zero(), zero(), zero()
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        for i in range(0, dim, LANES):
            ahead = at + AHEAD * step + 4 * i
            fetch(keys, ahead)
            fetch(keys, ahead + 16)
            x, y = load(query, q0 + i), load(query, q1 + i)
            k = load(keys, at + i)
            a0, b0 = add_product(k, x, a0), add_product(k, y, b0)
            k = load(keys, at + step + i)
            a1, b1 = add_product(k, x, a1), add_product(k, y, b1)
            k = load(keys, at + 2 * step + i)
            a2, b2 = add_product(k, x, a2), add_product(k, y, b2)
            k = load(keys, at + 3 * step + i)
            a3, b3 = add_product(k, x, a3), add_product(k, y, b3)
        x = sums_of(a0, a1, a2, a3, b0, b1, b2, b3)
        out[o0 + s], out[o0 + s + 1] = lane(x, 0), lane(x, 1)
        out[o0 + s + 2], out[o0 + s + 3] = lane(x, 2), lane(x, 3)
        out[o1 + s], out[o1 + s + 1] = lane(x, 4), lane(x, 5)
        out[o1 + s + 2], out[o1 + s + 3] = lane(x, 6), lane(x, 7)
        at += 4 * step
        s += 4
    while s < count:
        out[o0 + s], out[o1 + s] = _dot(query, q0, keys, at, dim), _dot(query, q1, keys, at, dim)
        at += step
        s += 1


@compiled
def _dots_4(query, q0, q1, q2, q3, keys, at, step, count, dim, out, o0, o1, o2, o3):
    s = 0
    while s + 2 <= count:
        a0, a1, a2, a3 = zero(), zero(), zero(), zero()
        b0, b1, b2, b3 = zero(), zero(), zero(), zero()
        for i in range(0, dim, LANES):
            fetch(keys, at + AHEAD * step + 2 * i)
            k, n = load(keys, at + i), load(keys, at + step + i)
            x = load(query, q0 + i)
            a0, b0 = add_product(k, x, a0), add_product(n, x, b0)
            x = load(query, q1 + i)
            a1, b1 = add_product(k, x, a1), add_product(n, x, b1)
            x = load(query, q2 + i)
            a2, b2 = add_product(k, x, a2), add_product(n, x, b2)
            x = load(query, q3 + i)
            a3, b3 = add_product(k, x, a3), add_product(n, x, b3)
        x = sums_of(a0, a1, a2, a3, b0, b1, b2, b3)
        out[o0 + s], out[o0 + s + 1] = lane(x, 0), lane(x, 4)
        out[o1 + s], out[o1 + s + 1] = lane(x, 1), lane(x, 5)
        out[o2 + s], out[o2 + s + 1] = lane(x, 2), lane(x, 6)
        out[o3 + s], out[o3 + s + 1] = lane(x, 3), lane(x, 7)
        at += 2 * step
        s += 2
    if s < count:
        out[o0 + s], out[o1 + s] = _dot(query, q0, keys, at, dim), _dot(query, q1, keys, at, dim)
        out[o2 + s], out[o3 + s] = _dot(query, q2, keys, at, dim), _dot(query, q3, keys, at, dim)


# Three rows go as four, the last of them twice: both copies then end as the same numbers.

# Values: 8 to 64 channels of up to 4 sums have a register each; `w` begins a query's weights, `o` its sum.


@compiled
def _mix_channels(weights, w, values, at, step, count, out, o):
    total = load(out, o)
    for s in range(count):
        total = add_product(repeat(weights, w + s), load(values, at + s * step), total)
    store(out, o, total)


@compiled
def _mix_1(weights, w, values, at, step, count, dim, out, o):
    i = 0
    while i + 8 * LANES <= dim:
        a0, a1 = load(out, o + i), load(out, o + i + 8)
        a2, a3 = load(out, o + i + 16), load(out, o + i + 24)
        b0, b1 = load(out, o + i + 32), load(out, o + i + 40)
        b2, b3 = load(out, o + i + 48), load(out, o + i + 56)
        v = at + i
        for s in range(count):
            x = repeat(weights, w + s)
            a0, a1 = add_product(x, load(values, v), a0), add_product(x, load(values, v + 8), a1)
            a2, a3 = add_product(x, load(values, v + 16), a2), add_product(x, load(values, v + 24), a3)
            b0, b1 = add_product(x, load(values, v + 32), b0), add_product(x, load(values, v + 40), b1)
            b2, b3 = add_product(x, load(values, v + 48), b2), add_product(x, load(values, v + 56), b3)
            v += step
        store(out, o + i, a0)
        store(out, o + i + 8, a1)
        store(out, o + i + 16, a2)
        store(out, o + i + 24, a3)
        store(out, o + i + 32, b0)
        store(out, o + i + 40, b1)
        store(out, o + i + 48, b2)
        store(out, o + i + 56, b3)
        i += 8 * LANES
    while i < dim:
        _mix_channels(weights, w, values, at + i, step, count, out, o + i)
        i += LANES


@compiled
def _mix_2(weights, w0, w1, values, at, step, count, dim, out, o0, o1):
    i = 0
    while i + 4 * LANES <= dim:
        a0, a1 = load(out, o0 + i), load(out, o0 + i + 8)
        a2, a3 = load(out, o0 + i + 16), load(out, o0 + i + 24)
        b0, b1 = load(out, o1 + i), load(out, o1 + i + 8)
        b2, b3 = load(out, o1 + i + 16), load(out, o1 + i + 24)
        v = at + i
        for s in range(count):
            x, y = repeat(weights, w0 + s), repeat(weights, w1 + s)
            z = load(values, v)
            a0, b0 = add_product(x, z, a0), add_product(y, z, b0)
            z = load(values, v + 8)
            a1, b1 = add_product(x, z, a1), add_product(y, z, b1)
            z = load(values, v + 16)
            a2, b2 = add_product(x, z, a2), add_product(y, z, b2)
            z = load(values, v + 24)
            a3, b3 = add_product(x, z, a3), add_product(y, z, b3)
            v += step
        store(out, o0 + i, a0)
        store(out, o0 + i + 8, a1)
        store(out, o0 + i + 16, a2)
        store(out, o0 + i + 24, a3)
        store(out, o1 + i, b0)
        store(out, o1 + i + 8, b1)
        store(out, o1 + i + 16, b2)
        store(out, o1 + i + 24, b3)
        i += 4 * LANES
    while i < dim:
        _mix_channels(weights, w0, values, at + i, step, count, out, o0 + i)
        _mix_channels(weights, w1, values, at + i, step, count, out, o1 + i)
        i += LANES


@compiled
def _mix_4(weights, w0, w1, w2, w3, values, at, step, count, dim, out, o0, o1, o2, o3):
    i = 0
    while i + 2 * LANES <= dim:
        a0, b0 = load(out, o0 + i), load(out, o0 + i + 8)
        a1, b1 = load(out, o1 + i), load(out, o1 + i + 8)
        a2, b2 = load(out, o2 + i), load(out, o2 + i + 8)
        a3, b3 = load(out, o3 + i), load(out, o3 + i + 8)
        v = at + i
        for s in range(count):
            fetch(values, v + BLOCK * step)
            x, y = load(values, v), load(values, v + 8)
            z = repeat(weights, w0 + s)
            a0, b0 = add_product(z, x, a0), add_product(z, y, b0)
            z = repeat(weights, w1 + s)
            a1, b1 = add_product(z, x, a1), add_product(z, y, b1)
            z = repeat(weights, w2 + s)
            a2, b2 = add_product(z, x, a2), add_product(z, y, b2)
            z = repeat(weights, w3 + s)
            a3, b3 = add_product(z, x, a3), add_product(z, y, b3)
            v += step
        store(out, o0 + i, a0)
        store(out, o0 + i + 8, b0)
        store(out, o1 + i, a1)
        store(out, o1 + i + 8, b1)
        store(out, o2 + i, a2)
        store(out, o2 + i + 8, b2)
        store(out, o3 + i, a3)
        store(out, o3 + i + 8, b3)
        i += 2 * LANES
    while i < dim:
        _mix_channels(weights, w0, values, at + i, step, count, out, o0 + i)
        _mix_channels(weights, w1, values, at + i, step, count, out, o1 + i)
        _mix_channels(weights, w2, values, at + i, step, count, out, o2 + i)
        if o3 != o2:
            _mix_channels(weights, w3, values, at + i, step, count, out, o3 + i)
        i += LANES


@compiled
def share(mixes, given, states, strides, shape, order, starts, out, first, threads):
    """One thread's share of the blocks.

    Rows of queries and of sums are `dim` wide and stand for all positions; rows of scores and of weights have a number for
    each position.

    Args:
        mixes: whether values are summed by weights, or else keys multiplied with queries.
        given: the weights or the queries, flat float32.
        states: all that the cache's storage holds, flat.
        strides: the cache's first number and the steps of batch, head and position.
        shape: batch, positions, width of a head, positions in a piece.
        order: rows in order of the cached head that they read.
        starts: where each cached head begins in `order`, and the end.
        out: the sums or the scores, flat float32.
        first: this thread.
        threads: how many there are.
    """
    batch, positions, dim, piece = shape
    width, out_width = (positions, dim) if mixes else (dim, positions)
    heads, rows, pieces = len(starts) - 1, len(order), -(-positions // piece)
    step = strides[3]
    for task in range(first, batch * heads * pieces, threads):
        b, h = task // pieces // heads, task // pieces % heads
        begin = task % pieces * piece
        end = min(begin + piece, positions)
        for s in range(begin, end, BLOCK):
            count = min(BLOCK, end - s)
            at = strides[0] + b * strides[1] + h * strides[2] + s * step
            ahead, out_ahead = (s, 0) if mixes else (0, s)
            j = starts[h]
            while j < starts[h + 1]:
                left = starts[h + 1] - j
                r = b * rows + order[j]
                g0, o0 = r * width + ahead, r * out_width + out_ahead
                if left == 1:
                    if mixes:
                        _mix_1(given, g0, states, at, step, count, dim, out, o0)
                    else:
                        _dots_1(given, g0, states, at, step, count, dim, out, o0)
                    j += 1
                    continue
                r = b * rows + order[j + 1]
                g1, o1 = r * width + ahead, r * out_width + out_ahead
                if left == 2:
                    if mixes:
                        _mix_2(given, g0, g1, states, at, step, count, dim, out, o0, o1)
                    else:
                        _dots_2(given, g0, g1, states, at, step, count, dim, out, o0, o1)
                    j += 2
                    continue
                r = b * rows + order[j + 2]
                g2, o2 = r * width + ahead, r * out_width + out_ahead
                r = b * rows + order[j + min(left - 1, 3)]  # of three, the last one twice
                g3, o3 = r * width + ahead, r * out_width + out_ahead
                if mixes:
                    _mix_4(given, g0, g1, g2, g3, states, at, step, count, dim, out, o0, o1, o2, o3)
                else:
                    _dots_4(given, g0, g1, g2, g3, states, at, step, count, dim, out, o0, o1, o2, o3)
                j += 4
