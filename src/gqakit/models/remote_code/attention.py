"""Attention in which any number of query heads, in any order, share a key head and a value head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .heads import HeadMaps
from .packing import DeviceIndex, Mask, Packing

# Up to this number of new positions attention is bound by reading the cache, so queries are packed beside it.
# Above, it is bound by arithmetic, and padding would cost more than one copy of K and V to all query heads.
PACKED_QUERY_LIMIT = 32

# A CPU gains more by leaving out padding than a call for each cached head costs from this size of the cache on,
# in numbers for each head.
MANY_CACHED = 1 << 18

# Up to this number of new positions the compiled kernels take over there, where they are installed.
KERNEL_QUERIES = 8

# Explicit scores are held for this number of new positions at a time.
QUERY_BLOCK = 256

# On a CPU, half precision takes a slow path for a single query row in SDPA (so each row is given four times), and
# for few rows in products (so they are made in float32, in blocks that stay in the processor's cache).
HALF_PRECISION = torch.bfloat16, torch.float16
HALF_PRECISION_ROWS = 4
WIDENED_POSITIONS = 2048


class Scoring(NamedTuple):
    """How scores become weights: `softmax(cap(q kᵀ · scaling) + mask)`, with a sink beside the scores if there is one.

    Attributes:
        dropout: probability to drop a weight.
        scaling: factor on the scores.
        is_causal: mask later positions; only without another mask.
        softcap: `cap(x) = softcap · tanh(x / softcap)`; None leaves scores as they are.
        sinks: `[1, H, 1, 1]`, one more score for each query head, which takes weight and reads no value.
    """

    dropout: float
    scaling: float
    is_causal: bool
    softcap: float | None = None
    sinks: Mask = None


def rows_on_cpu(group: int) -> int:
    """Rows for a group of query heads: CPU products are as fast with the next multiple of 4 or 8, or faster.

    Not so from one row more than a multiple of 4.
    """
    if group % 4 == 1:
        return group
    step = 4 if group <= 8 else 8
    return -(-group // step) * step


@cache
def compiled_kernels() -> Any:
    """The installed gqakit's kernels for decoding on a CPU; None where gqakit or numba is not installed."""
    try:
        from gqakit.models import decode_kernels
    except ImportError:
        return None
    return decode_kernels


class GroupedHeads:
    """Attention for one layer's head maps. Batch B, query heads H, new positions T, cached positions S.

    Args:
        heads: the layer's key map and value map.
    """

    def __init__(self, heads: HeadMaps) -> None:
        self.maps = maps = heads.key_head_of_query, heads.value_head_of_query
        self.same_maps = maps[0] == maps[1]
        self.padded = _Layout(maps)
        self.ragged = _Layout(maps, on_cpu=True)
        # The order of ordinary grouped-query attention, which transformers' own functions take as it is.
        self.ordinary = self.same_maps and self.padded.keys.in_order
        self.multi_head = self.ordinary and heads.num_key_heads == len(maps[0])
        self._head_of_query = [DeviceIndex(each) for each in maps]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, *scoring: Any) -> Tensor:
        """`softmax(cap(q kᵀ · scaling) + mask) v` for each query head, over the key and value head that it reads.

        Args:
            query: `[B, H, T, d]`.
            key: `[B, key heads, S, d]`.
            value: `[B, value heads, S, dv]`.
            mask: `[B or 1, 1 or H, T or 1, S]`, boolean (True takes part) or added to the scores, or None.
            *scoring: the fields of `Scoring`. One by one, as two releases of this code may meet in a process:
                see `grouped_attention_forward`.

        Returns:
            `[B, H, T, dv]`.
        """
        how = Scoring(*scoring)
        length, half = query.shape[2], query.dtype in HALF_PRECISION
        if how.is_causal:  # an empty static cache is longer than its first input
            key, value = key[:, :, :length], value[:, :, :length]
        stock = self.multi_head and not half  # nothing to gain over SDPA
        many = query.device.type == "cpu" and not torch.compiler.is_compiling()
        many = many and key.shape[0] * key.shape[2] * key.shape[3] >= MANY_CACHED
        if many and length <= KERNEL_QUERIES and not (how.dropout or how.is_causal or stock):
            kernels = compiled_kernels()
            if kernels is not None and kernels.usable(query, key, value):
                return self._compiled(query, key, value, mask, how)
        plain = how.softcap is None and how.sinks is None
        if plain:
            # For ordinary heads these are bit for bit what transformers' own function computes.
            if how.is_causal or length > PACKED_QUERY_LIMIT or stock:
                return self._copied(query, key, value, mask, how)
            if self.multi_head or (self.ordinary and mask is not None):
                return self.padded.fused(query, key, value, mask, how)
        layout = self.ragged if many else self.padded
        explicit = not plain or not self.same_maps or (many and not half)
        return (layout.explicit if explicit else layout.fused)(query, key, value, mask, how)

    def weights(self, query: Tensor, key: Tensor, mask: Mask, *scoring: Any) -> Tensor:
        """What `attend` weighs values with, `[B, H, T, S]`; made only for who asks, as it is large."""
        how, length = Scoring(*scoring), query.shape[2]
        if how.is_causal:
            key, mask = key[:, :, :length], query.new_ones(length, length, dtype=torch.bool).tril()
        key = key.index_select(1, self._head_of_query[0].on(key.device))  # [B, H, S, d]
        scores = _masked(query @ key.transpose(-1, -2) * how.scaling, mask, how)
        return softmax(scores, how.sinks).to(query.dtype)

    def _compiled(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, how: Scoring) -> Tensor:
        """Kernels read the cache as it lies; what is between them is small."""
        kernels = compiled_kernels()
        scores = kernels.scores(query.float() * how.scaling, key, self.maps[0])  # [B, H, T, S]
        scores = _masked(scores, mask, how)
        return kernels.mixture(softmax(scores, how.sinks), value, self.maps[1]).to(value.dtype)

    def _copied(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, how: Scoring) -> Tensor:
        """SDPA over keys and values that are copied to all query heads, unless SDPA can do without."""
        grouped = self.ordinary and mask is None and key.shape[-1] == value.shape[-1] <= 256
        if not grouped and not self.multi_head:
            key, value = (  # [B, H, S, d]
                states.index_select(1, index.on(states.device))
                for states, index in zip((key, value), self._head_of_query, strict=True)
            )
        gqa = grouped and not self.multi_head
        return sdpa(query, key, value, mask, how.dropout, how.is_causal, scale=how.scaling, enable_gqa=gqa)


@cache
def ordinary_heads(num_heads: int, kv_heads: int) -> GroupedHeads:
    """Grouped-query attention as transformers has it: query heads in order, the same number for each KV head."""
    reads = tuple(head * kv_heads // num_heads for head in range(num_heads))
    return GroupedHeads(HeadMaps(reads, reads))


class _Layout:
    """A packing by key head and one by value head, and attention over them.

    Args:
        maps: the key head and the value head of each query head.
        on_cpu: whether each cached head has only the rows it needs on a CPU; else all are padded alike.
    """

    def __init__(self, maps: tuple[Sequence[int], Sequence[int]], on_cpu: bool = False) -> None:
        self.keys, self.values = (Packing(each, rows_on_cpu if on_cpu else None) for each in maps)
        self.same_maps = maps[0] == maps[1]
        self.key_place_of_value_place = DeviceIndex(
            self.keys.place_of_query.cpu[self.values.query_of_place.cpu].tolist()
        )

    def fused(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, how: Scoring) -> Tensor:
        """PyTorch's SDPA in each call; the maps must be the same."""
        length, packing = query.shape[2], self.keys
        states = packing.pack(query), packing.cached(key), packing.cached(value)
        calls = *states, packing.pack_mask(mask, length)
        outs: list[Tensor] = []
        for rows, keys, values, rows_mask in zip(*calls, strict=True):
            if packing.ragged:  # a head of its own: [B, 1, rows, d]
                rows, keys, values = rows.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1)
                rows_mask = None if rows_mask is None else rows_mask.unsqueeze(1)
            repeats = HALF_PRECISION_ROWS if _slow(rows) and rows.shape[-2] == 1 else 1
            rows = rows.repeat(1, 1, repeats, 1) if repeats > 1 else rows
            out = sdpa(rows, keys, values, rows_mask, how.dropout, scale=how.scaling)
            out = out[:, :, :1] if repeats > 1 else out
            outs.append(out.squeeze(1) if packing.ragged else out)
        return packing.unpack(outs, length)

    def explicit(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, how: Scoring) -> Tensor:
        """Matrix products with the scores in between, for what SDPA cannot do or does slower."""
        batch, _, length, _ = query.shape
        if batch > 1 and _slow(query):  # the blocks of one sequence stay in the processor's cache
            masks = [None] * batch if mask is None else mask.expand(batch, -1, -1, -1).split(1)
            each = zip(query.split(1), key.split(1), value.split(1), masks, strict=True)
            return torch.cat([self.explicit(*one, how) for one in each])
        if how.is_causal:
            mask = query.new_ones(length, length, dtype=torch.bool).tril()[None, None]
        outs: list[Tensor] = []
        for start in range(0, length, QUERY_BLOCK):
            rows = slice(start, start + QUERY_BLOCK)
            block = (query if length <= QUERY_BLOCK else query[:, :, rows]) * how.scaling
            block_mask = mask[:, :, rows] if mask is not None and mask.shape[2] > 1 else mask
            weights = self._weights(block, key, block_mask, how)
            if how.dropout:
                weights = (drop(each, p=how.dropout) for each in weights)
            outs.append(self._mix(weights, value, block.shape[2]))
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)).to(value.dtype)

    def _weights(self, query: Tensor, key: Tensor, mask: Mask, how: Scoring) -> Iterator[Tensor]:
        """The weights of each call, `[B, (heads,) rows, S]`, one by one: they are used while in cache."""
        packing = self.keys
        masks, sinks = (packing.pack_mask(each, query.shape[2]) for each in (mask, how.sinks))
        calls = zip(packing.pack(query), packing.cached(key), masks, sinks, strict=True)
        for rows, keys, rows_mask, rows_sinks in calls:
            # Transposed, a product of few rows streams the keys; the other way round it is half as fast.
            scores = _product(keys, rows.transpose(-1, -2)).transpose(-1, -2).contiguous()
            yield softmax(_masked(scores, rows_mask, how), rows_sinks)

    def _mix(self, weights: Iterable[Tensor], value: Tensor, length: int) -> Tensor:
        """`[B, H, T, dv]` from the weights of each call."""
        if not self.same_maps:  # rows beside key heads to rows beside value heads
            packed = self.keys.join(list(weights), length)
            order = self.key_place_of_value_place.on(packed.device)
            weights = self.values.arrange(packed.index_select(1, order))
        outs = [_mixture(each, v) for each, v in zip(weights, self.values.cached(value), strict=True)]
        return self.values.unpack(outs, length)


def _masked(scores: Tensor, mask: Mask, how: Scoring) -> Tensor:
    """Scores capped, then masked by what broadcasts over them."""
    if how.softcap is not None:
        scores = how.softcap * (scores / how.softcap).tanh()
    if mask is not None and mask.dtype == torch.bool:
        # Not -inf: a position that sees nothing at all must stay finite.
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores if mask is None else scores + mask


def softmax(scores: Tensor, sinks: Mask) -> Tensor:
    """In float32 at least. A sink takes its part of each row's weights, `e^sink` beside the sum of `e^scores`."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = scores.softmax(-1)
    return weights if sinks is None else weights * (scores.logsumexp(-1, keepdim=True) - sinks).sigmoid()


def _product(keys: Tensor, rows: Tensor) -> Tensor:
    """`keys @ rows`; half precision on a CPU as float32, in blocks that stay in the processor's cache."""
    if not _slow(keys):
        return keys @ rows
    rows = rows.float()
    return torch.cat([block.float() @ rows for block in keys.split(WIDENED_POSITIONS, -2)], -2)


def _mixture(weights: Tensor, values: Tensor) -> Tensor:
    """`weights @ values`, in the precision of `_product`."""
    if not _slow(values):
        return weights.to(values.dtype) @ values
    blocks = zip(weights.split(WIDENED_POSITIONS, -1), values.split(WIDENED_POSITIONS, -2), strict=True)
    return torch.stack([each @ block.float() for each, block in blocks]).sum(0)


def _slow(states: Tensor) -> bool:
    """Whether products of few rows are far faster in float32: in half precision on a CPU."""
    return states.device.type == "cpu" and states.dtype in HALF_PRECISION


def grouped_attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The function behind `attn_implementation="gqakit"`, as transformers calls it.

    Whether attention is causal is decided as in transformers' `sdpa_attention_forward`. The module's own
    `grouped_heads` does the work: a checkpoint that brings this code may register it over another release's.
    A module without them keeps its stock heads and runs transformers' function.

    Args:
        module: the attention module.
        query, key, value, attention_mask: see `GroupedHeads.attend`.
        **kwargs: `dropout`, `scaling` (`d ** -0.5` if None) and `softcap`, see `Scoring`; `is_causal`, the module's
            own if None; `s_aux`, its `sinks`; `position_bias` `[B or 1, 1 or H, T or 1, S]`, which is added to the
            scores; and what transformers passes to attention functions of other kinds.

    Returns:
        `[B, T, H, dv]`, and with `output_attentions` or `weighs` the weights `[B, H, T, S]` before dropout.
    """
    position_bias, causal = kwargs.pop("position_bias", None), kwargs.pop("is_causal", None)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    causal = query.shape[2] > 1 and attention_mask is None and causal
    if position_bias is not None:
        attention_mask = mask_with_bias(attention_mask, position_bias, causal, query, key)
        causal = False
    heads, weighs = getattr(module, "grouped_heads", None), kwargs.pop("weighs", False)
    weighs = weighs or kwargs.get("output_attentions")
    if heads is None and not weighs:
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=causal, **kwargs)
    heads = heads or ordinary_heads(query.shape[1], key.shape[1])
    scaling = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    scoring = (kwargs.get("dropout", 0.0), scaling, causal, kwargs.get("softcap"))
    if kwargs.get("s_aux") is not None:  # what no older release takes
        scoring += (kwargs["s_aux"].view(1, -1, 1, 1),)
    weights = heads.weights(query, key, attention_mask, *scoring) if weighs else None
    out = heads.attend(query, key, value, attention_mask, *scoring)
    return out.transpose(1, 2).contiguous(), weights


def mask_with_bias(mask: Mask, bias: Tensor, causal: bool, query: Tensor, key: Tensor) -> Tensor:
    """The bias as a mask to add to the scores, with the boolean, additive or causal mask in it."""
    if mask is None and causal:
        mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    if mask is None or mask.dtype != torch.bool:
        return bias if mask is None else mask + bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min)  # not -inf, as in `_masked`
