"""Laying query heads out in rows beside the cached head they read.

Attention then runs over the cache as it lies: keys and values are never repeated or gathered, which at decode
costs more than the attention itself. This file is copied into every grouped checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Packing:
    """The layout for one head map: a slot for each query head in its group, and padding slots.

    A padding slot repeats the first query head of its group, so it stays finite; nothing reads its result.
    Padded, all groups get as many rows as the largest and one call runs over all cached heads: `[B, heads,
    rows T, d]`. Ragged, each group gets its own number of rows and each cached head a call: `[B, rows T, d]`.

    Args:
        head_of_query: for each query head the cached head it reads, labels 0..n-1.
        rows_of_group: the rows of a group of so many query heads, which makes the layout ragged; None pads.
    """

    def __init__(
        self, head_of_query: Sequence[int], rows_of_group: Callable[[int], int] | None = None
    ) -> None:
        groups: list[list[int]] = [[] for _ in range(max(head_of_query) + 1)]
        for query_head, head in enumerate(head_of_query):
            groups[head].append(query_head)
        self.ragged = rows_of_group is not None
        largest = max(map(len, groups))
        self.rows = [largest if rows_of_group is None else rows_of_group(len(group)) for group in groups]
        slots = [(group + group[:1] * rows)[:rows] for group, rows in zip(groups, self.rows, strict=True)]
        packed = [query_head for slot in slots for query_head in slot]
        self.in_order = packed == list(range(len(head_of_query)))
        self.query_of_slot = DeviceIndex(packed)
        self.slot_of_query = DeviceIndex([packed.index(head) for head in range(len(head_of_query))])

    def pack(self, query: Tensor) -> Sequence[Tensor]:
        """The rows of each call, from `[B, query heads, T, d]`."""
        if not self.in_order:
            query = query.index_select(1, self.query_of_slot.on(query.device))
        return self.arrange(query)

    def arrange(self, slots: Tensor) -> Sequence[Tensor]:
        """The rows of each call, from `[B, slots, T, d]`."""
        batch, _, length, dim = slots.shape
        if self.ragged:
            return slots.reshape(batch, -1, dim).split([rows * length for rows in self.rows], 1)
        return [slots.reshape(batch, len(self.rows), -1, dim)]

    def cached(self, states: Tensor) -> Sequence[Tensor]:
        """The keys or values of each call, from `[B, heads, S, d]`."""
        return states.unbind(1) if self.ragged else [states]

    def pack_mask(self, mask: Tensor | None, length: int) -> Sequence[Tensor] | Sequence[None]:
        """What broadcasts over the scores of each call, from `[B or 1, 1 or query heads, T or 1, S]`."""
        calls = len(self.rows) if self.ragged else 1
        if mask is None:
            return [None] * calls
        if mask.shape[1] == 1 and mask.shape[2] == 1:
            return [mask.squeeze(1) if self.ragged else mask] * calls
        mask = mask.expand(-1, -1, length, -1)
        if mask.shape[1] > 1:
            return self.pack(mask)
        if self.ragged:
            return [mask.expand(-1, rows, -1, -1).flatten(1, 2) for rows in self.rows]
        return [mask.expand(-1, self.rows[0], -1, -1).flatten(1, 2).unsqueeze(1)]

    def unpack(self, packed: Sequence[Tensor], length: int) -> Tensor:
        """The rows of each call back to `[B, query heads, length, d]`."""
        slots = self.slots(packed, length)
        if self.in_order:
            return slots
        return slots.index_select(1, self.slot_of_query.on(slots.device))

    def slots(self, packed: Sequence[Tensor], length: int) -> Tensor:
        """The rows of each call as `[B, slots, length, d]`."""
        joined = torch.cat(list(packed), 1) if self.ragged else packed[0]
        return joined.reshape(joined.shape[0], sum(self.rows), length, joined.shape[-1])


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
