"""Grouping and merge maps applied to the weights of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.attention import AttentionWeights, NormMaps, Projection
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging.base import HeadMerge, MergeRule
from gqakit.core.statistics import HeadStats


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
    *,
    fixed_queries: bool = False,
) -> AttentionWeights:
    """The layer with its KV heads merged, query heads in `grouping.query_order`.

    `W_Q[q] ← B_hᵀ W_Q[q]` and `W_O[:,q] ← W_O[:,q] B_h` for the query heads `q` that read KV head `h`. A KV head alone in
    its group, and whatever only it touches, is carried over bit for bit. Behind a normalisation the maps of keys become
    tensors of their own, and the projections of queries and keys stay as they are.

    Args:
        weights: the source layer, in any precision; products are taken in float64.
        grouping: which KV heads share.
        key_stats, value_stats: what the rules work on, for the same layer.
        key_rule, value_rule: how they merge.
        fixed_queries: query heads keep their places.
    """
    key_merges = merge_groups(key_stats, grouping.key, key_rule)
    value_merges = merge_groups(value_stats, grouping.value, value_rule)
    apart = key_stats.behind_norm and not grouping.key.is_identity
    key = weights.key
    if not apart:
        key = _merge_projection(weights.key, grouping.key, key_merges, key_stats.scale)
    value = _merge_projection(weights.value, grouping.value, value_merges, value_stats.scale)
    query = weights.query.augmented().clone()  # [query heads, head_dim, width (+ 1)]
    output = weights.output.clone()  # [query heads, width_out, head_dim]
    per_head = weights.num_heads // weights.num_kv_heads
    key_expands = _expand_maps(grouping.key, key_merges)
    for head, expand in key_expands.items():
        heads = slice(head * per_head, (head + 1) * per_head)
        if not apart:  # behind a normalisation queries are mapped there, by maps of their own
            query[heads] = (expand.mT @ query[heads].double()).to(query.dtype)
    for head, expand in _expand_maps(grouping.value, value_merges).items():
        heads = slice(head * per_head, (head + 1) * per_head)
        output[heads] = (output[heads].double() @ expand).to(output.dtype)
    order = torch.as_tensor(grouping.query_order(weights.num_heads, fixed=fixed_queries))
    queries = weights.query.with_rows(query)
    maps = _norm_maps(weights, grouping.key, key_merges, key_expands, order) if apart else None
    sinks = None if weights.sinks is None else weights.sinks[order]
    return AttentionWeights(queries.select(order), key, value, output[order], maps, sinks)


def _norm_maps(
    weights: AttentionWeights,
    partition: Partition,
    merges: Sequence[HeadMerge | None],
    expands: Mapping[int, Tensor],
    order: Tensor,
) -> NormMaps:
    """`P_h` for every source head and `B_hᵀ` for every query head in its new place; the identity for a head alone."""
    heads, dtype = weights.num_kv_heads, weights.key.weight.dtype
    eye = torch.eye(weights.key.head_dim, dtype=torch.float64)
    combines = {
        head: combine
        for group, merge in zip(partition.groups, merges, strict=True)
        if merge is not None
        for head, combine in zip(group, merge.combine, strict=True)
    }
    key = torch.stack([combines.get(head, eye) for head in range(heads)])
    query = torch.stack([expands.get(head, eye).mT for head in range(heads)])
    query = query.repeat_interleave(weights.num_heads // heads, dim=0)
    return NormMaps(key.to(dtype), query[order].to(dtype))


def _merge_projection(
    source: Projection, partition: Partition, merges: Sequence[HeadMerge | None], scale: Tensor
) -> Projection:
    """The shared heads `s = Σ_h P_h k_h`; `scale` is that of the statistics which the maps were made on, per head."""
    rows = source.augmented()
    merged: list[Tensor] = []
    for group, merge in zip(partition.groups, merges, strict=True):
        if merge is None:
            merged.append(rows[group[0]])
            continue
        # The statistics have heads of one length; the weights keep the members' mean length, as a normalisation adds a
        # constant to what it divides by.
        length = scale[list(group)] / scale[list(group)].mean()
        combine = merge.combine * length[:, None, None]  # [members, d, d] on rows [members, d, width]
        merged.append(torch.einsum("hab,hbx->ax", combine, rows[list(group)].double()).to(rows.dtype))
    new = torch.stack(merged)
    if source.gain is None:
        return Projection.from_augmented(new, source.bias is not None)
    gain = torch.stack(
        [
            source.gain[group[0]].double() if merge is None else _merged_gain(source, group, merge)
            for group, merge in zip(partition.groups, merges, strict=True)
        ]
    )
    if not source.each_alone:
        weight = _weight_in_norm(partition)
        gain, new = gain / weight[:, None], (new.double() * weight[:, None, None]).to(new.dtype)
    return Projection.from_augmented(
        new, source.bias is not None, gain.to(source.gain.dtype), source.each_alone
    )


def _merged_gain(source: Projection, group: Sequence[int], merge: HeadMerge) -> Float[Tensor, " head_dim"]:
    """The gain of a merged head. A normalisation of each head alone takes out its length, so there shares add up to 1."""
    assert source.gain is not None
    gain = source.gain[list(group)].double()  # [members, d]
    if source.each_alone:
        shares = merge.combine.diagonal(dim1=1, dim2=2)  # of locked heads, whose maps are diagonal
        return (shares * gain).sum(0) / shares.sum(0)
    return torch.einsum("hab,hb->a", merge.combine, gain)


def _weight_in_norm(partition: Partition) -> Float[Tensor, " groups"]:
    """The factor that makes a merged head weigh as much in the mean square over all heads as its members did.

    A normalisation over all heads takes that mean square. Multiplied into the head's rows and divided out of its gain
    this is exact for duplicates.
    """
    sizes = torch.tensor(partition.sizes, dtype=torch.float64)
    return (sizes * partition.num_groups / partition.num_heads).sqrt()


def _expand_maps(partition: Partition, merges: Sequence[HeadMerge | None]) -> dict[int, Tensor]:
    """For each merged source head `h` its `B_h`, `[d, d]`, where that is not the identity."""
    return {
        head: expand
        for group, merge in zip(partition.groups, merges, strict=True)
        if merge is not None
        for head, expand in zip(group, merge.expand, strict=True)
        if not torch.equal(expand, torch.eye(expand.shape[0], dtype=expand.dtype))
    }


def in_source_shape(
    converted: AttentionWeights, grouping: Grouping, *, fixed_queries: bool = False
) -> AttentionWeights:
    """A converted layer with as many heads as its source, in the source's order: it computes the same.

    Every KV head is repeated for all that share it, so that the source's own modules can run the layer. Keys merged by maps
    are repeated by who applies these.
    """
    order = torch.as_tensor(grouping.query_order(converted.num_heads, fixed=fixed_queries))
    back = torch.argsort(order)
    key, value, maps = converted.key, converted.value, converted.maps
    value = value.select(torch.as_tensor(grouping.value.labels))
    sinks = None if converted.sinks is None else converted.sinks[back]
    if maps is not None:
        maps = NormMaps(maps.key, maps.query[back])
        return AttentionWeights(converted.query.select(back), key, value, converted.output[back], maps, sinks)
    key = key.select(torch.as_tensor(grouping.key.labels))
    if key.gain is not None and not key.each_alone:  # each copy weighs as one head again
        weight = _weight_in_norm(grouping.key)[list(grouping.key.labels), None]  # [source heads, 1]
        rows = (key.augmented().double() / weight[..., None]).to(key.weight.dtype)
        key = Projection.from_augmented(rows, key.bias is not None, (key.gain * weight).to(key.gain.dtype))
    return AttentionWeights(converted.query.select(back), key, value, converted.output[back], sinks=sinks)
