"""Laying query heads out in rows beside the cached head that they read.

Attention then runs over the cache as it lies: keys and values are never repeated or gathered, which at decode
costs more than the attention itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Mask = Tensor | None


class Packing:
    """The layout for one head map: a place for each query head in its group, and padding places.

    A padding place repeats the first query head of its group, so it stays finite; nothing reads its result.
    Padded, all groups have as many places as the largest and one call runs over all cached heads, with queries
    `[B, heads, places · T, d]`. Ragged, each group has its own number of places and each cached head a call,
    with queries `[B, places · T, d]`.

    Args:
        head_of_query: for each query head the cached head that it reads, labels 0..n-1.
        places_of: gives a group's number of places by its size, which makes the layout ragged; None pads.
    """

    def __init__(self, head_of_query: Sequence[int], places_of: Callable[[int], int] | None = None) -> None:
        groups: list[list[int]] = [[] for _ in range(max(head_of_query) + 1)]
        for query_head, head in enumerate(head_of_query):
            groups[head].append(query_head)
        sizes = [len(group) for group in groups]
        self.ragged = places_of is not None
        self.places = [max(sizes) if places_of is None else places_of(size) for size in sizes]
        packed = [
            query_head
            for group, places in zip(groups, self.places, strict=True)
            for query_head in (group + group[:1] * places)[:places]
        ]
        self.in_order = packed == list(range(len(head_of_query)))
        self.query_of_place = DeviceIndex(packed)
        self.place_of_query = DeviceIndex([packed.index(head) for head in range(len(head_of_query))])

    def pack(self, query: Tensor) -> Sequence[Tensor]:
        """The queries of each call, from `[B, query heads, T, d]`."""
        if not self.in_order:
            query = query.index_select(1, self.query_of_place.on(query.device))
        return self.arrange(query)

    def arrange(self, packed: Tensor) -> Sequence[Tensor]:
        """The rows of each call, from `[B, places of all groups, T, d]`."""
        batch, _, length, dim = packed.shape
        if self.ragged:  # [B, places · T, d] for each cached head
            return packed.reshape(batch, -1, dim).split([places * length for places in self.places], 1)
        return [packed.reshape(batch, len(self.places), -1, dim)]  # [B, heads, places · T, d]

    def cached(self, states: Tensor) -> Sequence[Tensor]:
        """The keys or values of each call, from `[B, heads, S, d]`."""
        return states.unbind(1) if self.ragged else [states]

    def pack_mask(self, mask: Mask, length: int) -> Sequence[Tensor] | Sequence[None]:
        """What broadcasts over the scores of each call, from `[B or 1, 1 or query heads, T or 1, S]`."""
        calls = len(self.places) if self.ragged else 1
        if mask is None:
            return [None] * calls
        if mask.shape[1] == 1 and mask.shape[2] == 1:
            return [mask.squeeze(1) if self.ragged else mask] * calls
        mask = mask.expand(-1, -1, length, -1)
        if mask.shape[1] > 1:
            return self.pack(mask)
        if self.ragged:  # [B or 1, places · T, S]
            return [mask.expand(-1, places, -1, -1).flatten(1, 2) for places in self.places]
        return [mask.expand(-1, self.places[0], -1, -1).flatten(1, 2).unsqueeze(1)]

    def unpack(self, calls: Sequence[Tensor], length: int) -> Tensor:
        """The rows of each call back to `[B, query heads, length, d]`."""
        packed = self.join(calls, length)
        return packed if self.in_order else packed.index_select(1, self.place_of_query.on(packed.device))

    def join(self, calls: Sequence[Tensor], length: int) -> Tensor:
        """The rows of each call as `[B, places of all groups, length, d]`."""
        joined = torch.cat(list(calls), 1) if self.ragged else calls[0]
        return joined.reshape(joined.shape[0], sum(self.places), length, joined.shape[-1])


class DeviceIndex:
    """A constant index that is copied to each device once.

    It is no buffer: `from_pretrained` builds modules on the meta device, and a buffer that is not in the
    checkpoint would come out of that uninitialised.
    """

    def __init__(self, values: Sequence[int] | Sequence[Sequence[int]]) -> None:
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
