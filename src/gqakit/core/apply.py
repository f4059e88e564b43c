"""Grouping and merge maps applied to the weights of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import HeadMerge, MergeRule
from gqakit.core.moments import HeadStats


def merge_groups(stats: HeadStats, partition: Partition, rule: MergeRule) -> tuple[HeadMerge | None, ...]:
    """The maps of every group; None for a head that stays alone and so unchanged."""
    return tuple(rule.merge(stats.select(group)) if len(group) > 1 else None for group in partition.groups)


def apply_grouping(
    weights: AttentionWeights,
    grouping: Grouping,
    key_stats: HeadStats,
    value_stats: HeadStats,
    key_rule: MergeRule,
    value_rule: MergeRule,
) -> AttentionWeights:
    """The layer with its KV heads merged, query heads in `grouping.query_order`.

    A KV head alone in its group, and whatever only it touches, is carried over bit for bit.

    Args:
        weights: the source layer, in any precision; products are taken in float64.
        grouping: which KV heads share.
        key_stats, value_stats: what the rules work on, for the same layer.
        key_rule, value_rule: how they merge.
    """
    key_merges = merge_groups(key_stats, grouping.key, key_rule)
    value_merges = merge_groups(value_stats, grouping.value, value_rule)
    key = _merge_projection(weights.key, grouping.key, key_merges, key_stats.scale)
    value = _merge_projection(weights.value, grouping.value, value_merges, value_stats.scale)
    query = weights.query.augmented().clone()
    output = weights.output.clone()
    for head, expand in _expand_maps(grouping.key, key_merges).items():
        rows = _readers(weights, head)
        query[rows] = (expand.mT @ query[rows].double()).to(query.dtype)
    for head, expand in _expand_maps(grouping.value, value_merges).items():
        columns = _readers(weights, head)
        output[columns] = (output[columns].double() @ expand).to(output.dtype)
    order = torch.as_tensor(grouping.query_order(weights.num_heads))
    return AttentionWeights(
        Projection.from_augmented(query[order], weights.query.bias is not None), key, value, output[order]
    )


def _merge_projection(
    source: Projection, partition: Partition, merges: Sequence[HeadMerge | None], scale: Tensor
) -> Projection:
    rows = source.augmented()
    merged: list[Tensor] = []
    for group, merge in zip(partition.groups, merges, strict=True):
        if merge is None:
            merged.append(rows[group[0]])
            continue
        combine = merge.combine * scale[list(group), None, None]
        merged.append(torch.einsum("hab,hbx->ax", combine, rows[list(group)].double()).to(rows.dtype))
    return Projection.from_augmented(torch.stack(merged), source.bias is not None)


def _expand_maps(partition: Partition, merges: Sequence[HeadMerge | None]) -> dict[int, Tensor]:
    """For each merged head the map by which it is read, where that is not the identity."""
    return {
        head: expand
        for group, merge in zip(partition.groups, merges, strict=True)
        if merge is not None
        for head, expand in zip(group, merge.expand, strict=True)
        if not torch.equal(expand, torch.eye(expand.shape[0], dtype=expand.dtype))
    }


def _readers(weights: AttentionWeights, kv_head: int) -> slice:
    """The query heads that read a source KV head."""
    per_head = weights.num_heads // weights.num_kv_heads
    return slice(kv_head * per_head, (kv_head + 1) * per_head)


def in_source_shape(converted: AttentionWeights, grouping: Grouping) -> AttentionWeights:
    """A converted layer with as many heads as its source, in the source's order: it computes the same.

    Every KV head is repeated for all that share it, so that the source's own modules can run the layer.
    """
    order = torch.as_tensor(grouping.query_order(converted.num_heads))
    back = torch.argsort(order)

    def repeat(projection: Projection, partition: Partition) -> Projection:
        heads = torch.as_tensor(partition.labels)
        bias = None if projection.bias is None else projection.bias[heads]
        return Projection(projection.weight[heads], bias)

    query = Projection(
        converted.query.weight[back], None if converted.query.bias is None else converted.query.bias[back]
    )
    return AttentionWeights(
        query,
        repeat(converted.key, grouping.key),
        repeat(converted.value, grouping.value),
        converted.output[back],
    )
