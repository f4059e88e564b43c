"""Laying query heads out in rows beside the cached head they read.

Attention then runs over the cache as it lies: keys and values are never repeated or gathered, which at decode
costs more than the attention itself. This file is copied into every grouped checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Packing:
    """The layout for one head map: a row for each query head in its group, shorter groups padded.

    A padding row repeats the first query head of its group, so it stays finite; nothing reads its result.

    Args:
        head_of_query: for each query head the cached head it reads, labels 0..n-1.
    """

    def __init__(self, head_of_query: Sequence[int]) -> None:
        groups: list[list[int]] = [[] for _ in range(max(head_of_query) + 1)]
        for query_head, head in enumerate(head_of_query):
            groups[head].append(query_head)
        self.num_heads = len(groups)
        self.rows = max(map(len, groups))
        slots = [(group + group[:1] * self.rows)[: self.rows] for group in groups]
        packed = [query_head for slot in slots for query_head in slot]
        self.in_order = packed == list(range(len(head_of_query)))
        self.head_of_query = DeviceIndex(head_of_query)
        self.query_of_slot = DeviceIndex(packed)
        self.slot_of_query = DeviceIndex(
            [packed.index(query_head) for query_head in range(len(head_of_query))]
        )

    def pack(self, query: Tensor) -> Tensor:
        """`[batch, query heads, T, d]` to `[batch, heads, rows * T, d]`."""
        batch, _, length, dim = query.shape
        if not self.in_order:
            query = query.index_select(1, self.query_of_slot.on(query.device))
        return query.reshape(batch, self.num_heads, self.rows * length, dim)

    def unpack(self, packed: Tensor, length: int) -> Tensor:
        """`[batch, heads, rows * length, d]` back to `[batch, query heads, length, d]`."""
        batch, _, _, dim = packed.shape
        packed = packed.reshape(batch, self.num_heads * self.rows, length, dim)
        if self.in_order:
            return packed
        return packed.index_select(1, self.slot_of_query.on(packed.device))

    def spread(self, states: Tensor) -> Tensor:
        """`[batch, heads, S, d]` to `[batch, query heads, S, d]`, a copy for each query head."""
        if self.in_order and self.rows == 1:
            return states
        return states.index_select(1, self.head_of_query.on(states.device))


class DeviceIndex:
    """A constant index that is copied to each device once.

    It is no buffer: `from_pretrained` builds modules on the meta device, and a buffer that is not in the
    checkpoint would come out of that uninitialised.
    """

    def __init__(self, values: Sequence[int]) -> None:
        self.cpu = torch.tensor(list(values), dtype=torch.long, device="cpu")
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The index as a tensor on `device`."""
        if device.type == "cpu":
            return self.cpu
        if device not in self._copies:
            # A copy made under inference_mode could not be saved for a later backward pass.
            with torch.inference_mode(False):
                self._copies[device] = self.cpu.to(device)
        return self._copies[device]
