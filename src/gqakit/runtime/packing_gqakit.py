"""Laying query heads out in rows beside the cached head they read.

Attention then runs over the cache as it lies: keys and values are never repeated or gathered, which at decode
costs more than the attention itself. This file is copied into every grouped checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Cached heads that one call attends to, each with as many rows of query heads."""

    heads: slice
    num_heads: int
    rows: int


class Packing:
    """The layout for one head map: a slot for each query head in its group, and padding slots.

    A padding slot repeats the first query head of its group, so it stays finite; nothing reads its result.

    Args:
        head_of_query: for each query head the cached head it reads, labels 0..n-1.
        rows_of_group: the slots that a group of so many query heads gets, every cached head being a part of
            its own. None pads all groups to the largest, and all cached heads are one part.
    """

    def __init__(
        self, head_of_query: Sequence[int], rows_of_group: Callable[[int], int] | None = None
    ) -> None:
        groups: list[list[int]] = [[] for _ in range(max(head_of_query) + 1)]
        for query_head, head in enumerate(head_of_query):
            groups[head].append(query_head)
        if rows_of_group is None:
            rows = [max(map(len, groups))] * len(groups)
            self.parts = [Part(slice(0, len(groups)), len(groups), rows[0])]
        else:
            rows = [rows_of_group(len(group)) for group in groups]
            self.parts = [Part(slice(head, head + 1), 1, count) for head, count in enumerate(rows)]
        slots = [(group + group[:1] * count)[:count] for group, count in zip(groups, rows, strict=True)]
        packed = [query_head for slot in slots for query_head in slot]
        self.slots_of_part = [part.num_heads * part.rows for part in self.parts]
        self.in_order = packed == list(range(len(head_of_query)))
        self.query_of_slot = DeviceIndex(packed)
        self.slot_of_query = DeviceIndex([packed.index(head) for head in range(len(head_of_query))])

    def pack(self, query: Tensor) -> list[Tensor]:
        """`[batch, query heads, T, d]` to `[batch, heads of the part, rows * T, d]` for each part."""
        batch, _, length, dim = query.shape
        if not self.in_order:
            query = query.index_select(1, self.query_of_slot.on(query.device))
        if len(self.parts) == 1:
            part = self.parts[0]
            return [query.reshape(batch, part.num_heads, part.rows * length, dim)]
        return [states.reshape(batch, 1, -1, dim) for states in query.split(self.slots_of_part, 1)]

    def pack_mask(self, mask: Tensor | None, length: int) -> list[Tensor] | list[None]:
        """`[batch or 1, 1 or query heads, T or 1, S]` to what broadcasts over the parts that `pack` gives."""
        if mask is None:
            return [None] * len(self.parts)
        batch, heads, rows, positions = mask.shape
        if heads == 1 and rows == 1:
            return [mask] * len(self.parts)
        if rows != length:
            mask = mask.expand(-1, -1, length, -1)
        if heads > 1:
            return self.pack(mask)
        return [
            mask.unsqueeze(2).expand(-1, -1, part.rows, -1, -1).reshape(batch, 1, -1, positions)
            for part in self.parts
        ]

    def unpack(self, packed: Sequence[Tensor], length: int) -> Tensor:
        """`[batch, heads, rows * length, d]` of each part back to `[batch, query heads, length, d]`."""
        batch, _, _, dim = packed[0].shape
        slots = [states.reshape(batch, -1, length, dim) for states in packed]
        joined = slots[0] if len(slots) == 1 else torch.cat(slots, 1)
        if self.in_order:
            return joined
        return joined.index_select(1, self.slot_of_query.on(joined.device))


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
