"""Attention in which any number of query heads, in any order, share a key head and a value head.

This file is copied into every grouped checkpoint, so it imports nothing of gqakit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers.utils import logging

from .heads_gqakit import LayerHeads
from .packing_gqakit import DeviceIndex, Packing

logger = logging.get_logger(__name__)

# Up to so many new positions attention is bound by reading the cache, so queries are packed beside it. Above,
# it is bound by arithmetic, and padding rows would cost more than one copy of K and V to all query heads.
PACKED_QUERY_LIMIT = 32


class GroupedHeads:
    """Attention for one layer's head maps. Batch B, query heads H, new positions T, cached positions S.

    Args:
        heads: the layer's key map and value map.
    """

    def __init__(self, heads: LayerHeads) -> None:
        self.keys = Packing(heads.key_head_of_query)
        self.values = Packing(heads.value_head_of_query)
        self.same_maps = heads.key_head_of_query == heads.value_head_of_query
        self.key_slot_of_value_slot = DeviceIndex(
            self.keys.slot_of_query.cpu[self.values.query_of_slot.cpu].tolist()
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        scaling: float,
        is_causal: bool,
    ) -> Tensor:
        """`softmax(q kᵀ · scaling + mask) v` for each query head, over the key and value head that it reads.

        Args:
            query: `[B, H, T, d]`.
            key: `[B, key heads, S, d]`.
            value: `[B, value heads, S, dv]`.
            mask: `[B or 1, 1 or H, T, S]`, boolean (True takes part) or added to the scores, or None.
            dropout: probability to drop an attention weight.
            scaling: factor on the scores.
            is_causal: mask later positions; only without `mask`.

        Returns:
            `[B, H, T, dv]`.
        """
        shared_mask = mask is None or mask.shape[1] == 1
        if is_causal or not shared_mask or query.shape[2] > PACKED_QUERY_LIMIT:
            return self._attend_spread(query, key, value, mask, dropout, scaling, is_causal)
        if self.same_maps:
            return self._attend_packed(query, key, value, mask, dropout, scaling)
        return self._attend_two_maps(query, key, value, mask, dropout, scaling)

    def _attend_spread(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        scaling: float,
        is_causal: bool,
    ) -> Tensor:
        if is_causal:  # an empty static cache is longer than its first input
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        key, value = self.keys.spread(key), self.values.spread(value)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=is_causal
        )

    def _attend_packed(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float
    ) -> Tensor:
        packed = self.keys.pack(query)
        # On a CPU, half precision takes a slow path for a single query row.
        doubled = packed.shape[2] == 1 and packed.device.type == "cpu" and packed.dtype != torch.float32
        if doubled:
            packed = packed.expand(-1, -1, 2, -1)
        mask = _mask_of_rows(mask, self.keys.rows)
        out = scaled_dot_product_attention(
            packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
        return self.keys.unpack(out[:, :, :1] if doubled else out, query.shape[2])

    def _attend_two_maps(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float
    ) -> Tensor:
        scores = self.keys.pack(query) @ key.transpose(2, 3)  # [B, key heads, rows T, S]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling
        mask = _mask_of_rows(mask, self.keys.rows)
        if mask is not None and mask.dtype == torch.bool:
            # Not -inf: a position that sees nothing at all must stay finite.
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores = scores + mask
        weights = drop(scores.softmax(-1), p=dropout).to(value.dtype)
        batch, length, positions = query.shape[0], query.shape[2], key.shape[2]
        weights = weights.reshape(batch, -1, length, positions)  # [B, key slots, T, S]
        weights = weights.index_select(
            1, self.key_slot_of_value_slot.on(weights.device)
        )  # [B, value slots, T, S]
        out = weights.reshape(batch, self.values.num_heads, -1, positions) @ value
        return self.values.unpack(out, length)


def _mask_of_rows(mask: Tensor | None, rows: int) -> Tensor | None:
    """`[B, 1, T, S]` to `[B, 1, rows * T, S]`; a mask of one position broadcasts over the rows as it is."""
    if mask is None or mask.shape[2] == 1:
        return mask
    return mask.unsqueeze(2).expand(-1, -1, rows, -1, -1).flatten(2, 3)


def grouped_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function behind `attn_implementation="gqakit"`, with the signature transformers asks for.

    Whether attention is causal is decided as in transformers' `sdpa_attention_forward`. The module's own
    `grouped_heads` does the work: a checkpoint that brings this code may register it over another release's.

    Returns:
        `[B, T, H, dv]`, and None where other functions give attention weights.

    Raises:
        ValueError: the family caps its scores (`softcap`), which SDPA cannot.
    """
    if kwargs.get("softcap") is not None:
        raise ValueError("`gqakit` attention does not support `softcap`.")
    if kwargs.get("output_attentions", False):
        logger.warning_once(
            "`gqakit` attention does not support `output_attentions=True`, as `sdpa` does not."
        )
    wants_causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = query.shape[2] > 1 and attention_mask is None and wants_causal
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = module.grouped_heads.attend(query, key, value, attention_mask, dropout, scaling, causal)
    return out.transpose(1, 2).contiguous(), None
