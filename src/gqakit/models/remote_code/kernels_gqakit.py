"""Attention's two products at decode, compiled for the processor by numba.

What is compiled is in `loops_gqakit`; here tensors are handed to it and threads share the work. This file is copied into
every grouped checkpoint, so it imports nothing of gqakit; without numba nothing here can be used, and `attention_gqakit`
does without.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .loops_gqakit import share
from .vectors_gqakit import LANES

DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.int16, torch.float16: torch.uint16}
"""What is multiplied, by how its bits are handed to the kernels."""

# Threads share the cache in pieces of so many positions, if it has so many numbers in all.
PIECE = 512
SHARED = 1 << 20


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
    _run(False, rows, keys, groups, length, [out])
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
    _run(True, weights.float().contiguous(), values, groups, length, list(outs))
    return outs[0] if len(outs) == 1 else outs.sum(0)


def _run(
    mixes: bool,
    rows: Tensor,
    states: Tensor,
    groups: GroupRows,
    length: int,
    outs: Sequence[Tensor],
) -> None:
    """One of the two products on all threads; each has an `outs` of its own, or all share the one there is."""
    batch, _, positions, dim = states.shape
    order, starts = groups.rows(length)
    bits = states.view(DTYPES[states.dtype])
    flat = bits.as_strided((states.untyped_storage().nbytes() // states.itemsize,), (1,), 0).numpy()
    strides = states.storage_offset(), *states.stride()[:3]
    threads = _threads(states)
    piece = PIECE if threads > 1 else positions
    shape = batch, positions, dim, piece
    given = mixes, rows.view(-1).numpy(), flat, strides, shape, order, starts
    calls = [(*given, outs[one % len(outs)].view(-1).numpy(), one, threads) for one in range(threads)]
    if threads == 1:
        share(*calls[0])
        return
    others = [_pool(os.getpid(), threads - 1).submit(share, *call) for call in calls[1:]]
    share(*calls[0])
    for other in others:
        other.result()


def _threads(states: Tensor) -> int:
    """How many threads share the work."""
    return torch.get_num_threads() if states.numel() >= SHARED else 1


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads beside the caller's own; a forked process gets its own."""
    return ThreadPoolExecutor(threads, "gqakit-decode")
