"""Which heads an engine gets, layer by layer: the one description that every export is made from. Pure Python.

An engine with equal groups runs unequal ones exactly when shorter groups are padded with query heads that nothing
reads (query padding), and more KV heads than there are when one is written twice for two parts of its group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gqakit.models.remote_code.heads import HeadMaps

Group = tuple[int, ...]


@dataclass(frozen=True)
class Arrangement:
    """One layer with equal groups of consecutive query heads, in heads of the checkpoint.

    Attributes:
        query: the query head in each place. A place that is not `live` repeats a head of its group (so that no row
            is zero, which quantisers do not like), and its output columns are to be zero.
        live: whether the place counts.
        key, value: the key head and the value head of each KV head.
    """

    query: tuple[int, ...]
    live: tuple[bool, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]

    @property
    def num_heads(self) -> int:
        """Query heads, padding included."""
        return len(self.query)

    @property
    def num_kv_heads(self) -> int:
        """KV heads."""
        return len(self.key)

    @property
    def is_padded(self) -> bool:
        """Whether some query heads are padding."""
        return not all(self.live)


def groups_of(heads: HeadMaps) -> list[Group]:
    """Query heads that read the same key head and the same value head: the common refinement of the two maps.

    In the order of their first query head; where the maps are the same, the refinement is the map.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for query, pair in enumerate(zip(heads.key_head_of_query, heads.value_head_of_query, strict=True)):
        groups.setdefault(pair, []).append(query)
    return [tuple(members) for members in groups.values()]


def arrange(heads: HeadMaps, groups: Sequence[Group], size: int) -> Arrangement:
    """The layer in these groups, each padded to `size`.

    Args:
        heads: what each query head reads.
        groups: all query heads, once each; those of a group read the same heads. size: at least the largest.
    """
    padded = [(group + group[:1] * size)[:size] for group in groups]
    return Arrangement(
        query=tuple(query for group in padded for query in group),
        live=tuple(place < len(group) for group in groups for place in range(size)),
        key=tuple(heads.key_head_of_query[group[0]] for group in groups),
        value=tuple(heads.value_head_of_query[group[0]] for group in groups),
    )


def pad_layer(heads: HeadMaps) -> Arrangement:
    """For an engine whose layers may differ: as many KV heads as the layer has, groups padded to its largest."""
    groups = groups_of(heads)
    return arrange(heads, groups, max(map(len, groups)))


def equalise_layer(heads: HeadMaps) -> Arrangement:
    """For an engine whose layers may differ and whose groups are alike: no padding, groups cut into parts of one size.

    The size is the largest that divides every group of the layer: where groups have one size already, nothing is cut.
    """
    groups = groups_of(heads)
    size = math.gcd(*map(len, groups))
    return arrange(heads, cut(groups, _parts(groups, size), size), size)


def pad_model(layers: Sequence[HeadMaps]) -> list[Arrangement]:
    """For an engine whose layers are all alike: as many KV heads as the layer with most, and the least padding.

    Layers with fewer KV heads have groups cut in parts, each with the KV head written again.
    """
    groups = [groups_of(heads) for heads in layers]
    count = max(map(len, groups))
    most = max(len(group) for layer in groups for group in layer)
    size = next(s for s in range(1, most + 1) if all(_parts(layer, s) <= count for layer in groups))
    return [
        arrange(heads, cut(layer, count, size), size) for heads, layer in zip(layers, groups, strict=True)
    ]


def equalise_model(layers: Sequence[HeadMaps]) -> list[Arrangement]:
    """For an engine whose layers are all alike: no padding, every group cut into parts of one size.

    The size is the largest that divides every group of every layer; the KV cache grows as it shrinks.
    """
    groups = [groups_of(heads) for heads in layers]
    size = math.gcd(*(len(group) for layer in groups for group in layer))
    return [
        arrange(heads, cut(layer, _parts(layer, size), size), size)
        for heads, layer in zip(layers, groups, strict=True)
    ]


def cut(groups: Sequence[Group], count: int, size: int) -> list[Group]:
    """The groups cut into `count` parts of at most `size`: as even as can be, the largest cut first."""
    pieces = [math.ceil(len(group) / size) for group in groups]
    while sum(pieces) < count:
        largest = max(range(len(groups)), key=lambda i: (len(groups[i]) / pieces[i], -i))
        pieces[largest] += 1
    return [part for group, number in zip(groups, pieces, strict=True) for part in _even(group, number)]


def _parts(groups: Sequence[Group], size: int) -> int:
    return sum(math.ceil(len(group) / size) for group in groups)


def _even(group: Group, number: int) -> list[Group]:
    bounds = [len(group) * i // number for i in range(number + 1)]
    return [group[start:end] for start, end in pairwise(bounds)]
