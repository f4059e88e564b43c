"""Which source KV heads share one new KV head.

A `Partition` says it for one projection (keys or values) of one layer; a `Grouping` holds the
two partitions of a layer, usually the same one. Labels are canonical: groups are numbered by
first occurrence, so two partitions are equal exactly when they group the same heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Partition:
    """A partition of `len(labels)` KV heads; `labels[h]` is the group of head `h`.

    Raises:
        ValueError: when the labels are not canonical; `Partition.of` canonicalises any labels.
    """

    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a partition needs at least one head")
        if self.labels != canonical_labels(self.labels):
            raise ValueError(f"labels {list(self.labels)} are not canonical (first occurrence order)")

    @classmethod
    def of(cls, labels: Iterable[int]) -> Partition:
        """The partition with these labels, renumbered by first occurrence."""
        return cls(canonical_labels(tuple(labels)))

    @classmethod
    def from_groups(cls, groups: Iterable[Iterable[int]]) -> Partition:
        """The partition with these groups of head indices, which must cover `0..n-1` once each."""
        label_of: dict[int, int] = {}
        for label, group in enumerate(groups):
            for head in group:
                if head in label_of:
                    raise ValueError(f"head {head} stands in two groups")
                label_of[head] = label
        if sorted(label_of) != list(range(len(label_of))):
            raise ValueError(f"groups must cover heads 0..{len(label_of) - 1}, got {sorted(label_of)}")
        return cls.of(label_of[head] for head in range(len(label_of)))

    @classmethod
    def identity(cls, num_heads: int) -> Partition:
        """Every head alone."""
        return cls(tuple(range(num_heads)))

    @classmethod
    def single(cls, num_heads: int) -> Partition:
        """All heads in one group (multi-query attention)."""
        return cls((0,) * num_heads)

    @property
    def num_heads(self) -> int:
        """Number of source KV heads."""
        return len(self.labels)

    @cached_property
    def num_groups(self) -> int:
        """Number of KV heads that are left."""
        return max(self.labels) + 1

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The members of each group, ascending, group by group."""
        members: list[list[int]] = [[] for _ in range(self.num_groups)]
        for head, label in enumerate(self.labels):
            members[label].append(head)
        return tuple(tuple(group) for group in members)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of source KV heads in each group."""
        return tuple(len(group) for group in self.groups)

    @property
    def is_identity(self) -> bool:
        """Whether no two heads share."""
        return self.num_groups == self.num_heads

    @property
    def is_equal(self) -> bool:
        """Whether all groups have the same size."""
        return len(set(self.sizes)) == 1

    def of_queries(self, num_query_heads: int) -> tuple[int, ...]:
        """The group that each query head reads, for query heads in source order.

        Query head `q` of the source reads KV head `q // (num_query_heads / num_heads)`.

        Raises:
            ValueError: when the query heads are not a multiple of the KV heads.
        """
        per_head, rest = divmod(num_query_heads, self.num_heads)
        if rest:
            raise ValueError(f"{num_query_heads} query heads are no multiple of {self.num_heads} KV heads")
        return tuple(self.labels[q // per_head] for q in range(num_query_heads))


@dataclass(frozen=True)
class Grouping:
    """The partitions of one layer: `key` for the key heads, `value` for the value heads."""

    key: Partition
    value: Partition

    def __post_init__(self) -> None:
        if self.key.num_heads != self.value.num_heads:
            raise ValueError(f"{self.key.num_heads} key heads but {self.value.num_heads} value heads")

    @classmethod
    def shared(cls, partition: Partition) -> Grouping:
        """One map for keys and values."""
        return cls(partition, partition)

    @property
    def is_shared(self) -> bool:
        """Whether keys and values are grouped alike."""
        return self.key == self.value

    @property
    def is_identity(self) -> bool:
        """Whether nothing is merged."""
        return self.key.is_identity and self.value.is_identity

    @property
    def is_uniform(self) -> bool:
        """Whether a stock engine can express it: one map, equal group sizes."""
        return self.is_shared and self.key.is_equal

    def query_order(self, num_query_heads: int, *, fixed: bool = False) -> tuple[int, ...]:
        """Source query heads in the order that makes key groups contiguous (and, inside them, value groups).

        Stable, so it is the identity where the groups already are contiguous. It is the identity, too, where query
        heads are `fixed` to their places.
        """
        if fixed:
            return tuple(range(num_query_heads))
        key, value = self.key.of_queries(num_query_heads), self.value.of_queries(num_query_heads)
        return tuple(sorted(range(num_query_heads), key=lambda q: (key[q], value[q])))

    def query_maps(
        self, num_query_heads: int, *, fixed: bool = False
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """For the query heads in `query_order`: the new key head and the new value head each reads."""
        order = self.query_order(num_query_heads, fixed=fixed)
        key, value = self.key.of_queries(num_query_heads), self.value.of_queries(num_query_heads)
        return tuple(key[q] for q in order), tuple(value[q] for q in order)


def canonical_labels(labels: Sequence[int]) -> tuple[int, ...]:
    """Labels renumbered by first occurrence: `(5, 2, 5)` becomes `(0, 1, 0)`."""
    number: dict[int, int] = {}
    return tuple(number.setdefault(label, len(number)) for label in labels)
