"""The size of a KV cache, and the one meaning of a budget.

`kv_ratio` is KV-cache bytes after / before. Every other spelling is turned into it here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the size of a cache needs no torch
    from gqakit.core.cache_types import CachePair

GIB = 1024**3


@dataclass(frozen=True)
class CacheShape:
    """What each layer keeps for one token: `key_heads[l] + value_heads[l]` vectors of `head_dim` elements."""

    key_heads: tuple[int, ...]
    value_heads: tuple[int, ...]
    head_dim: int
    element_bytes: int

    def __post_init__(self) -> None:
        if len(self.key_heads) != len(self.value_heads):
            raise ValueError(f"{len(self.key_heads)} layers of keys, {len(self.value_heads)} of values")

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence takes in the cache."""
        return (sum(self.key_heads) + sum(self.value_heads)) * self.head_dim * self.element_bytes

    def bytes_at(self, context: int, batch: int = 1) -> int:
        """Bytes for `batch` sequences of `context` tokens."""
        return self.bytes_per_token * context * batch

    def bytes_in(self, pair: CachePair) -> float:
        """Bytes per token in a cache of these types, scales included."""
        counts = zip(self.key_heads, self.value_heads, strict=True)
        return sum(pair.nbytes(keys, values, self.head_dim) for keys, values in counts)

    def ratio_to(self, source: CacheShape) -> float:
        """`kv_ratio` of this cache against the source's, at equal precision."""
        return (sum(self.key_heads) + sum(self.value_heads)) / (
            sum(source.key_heads) + sum(source.value_heads)
        )


@dataclass(frozen=True)
class Budget:
    """How small the cache may be: `kv_ratio`, the words in which it was asked for, and heads if it was in heads."""

    kv_ratio: float
    asked: str
    kv_heads: int | None = None


def resolve_budget(
    source: CacheShape,
    *,
    kv_ratio: float | None = None,
    kv_heads: int | None = None,
    kv_bytes_per_token: int | None = None,
    kv_gib: float | None = None,
    context: int | None = None,
    batch: int | None = None,
) -> Budget:
    """The budget that exactly one of the spellings gives for a source.

    Args:
        source: the cache of the source model.
        kv_ratio: bytes after / before, in (0, 1].
        kv_heads: KV heads per layer, for sources with the same number in every layer.
        kv_bytes_per_token: bytes per token, at the source's precision.
        kv_gib: GiB for the whole cache, of `batch` sequences (1) of `context` tokens.

    Raises:
        ValueError: when none or several are given, or the value is out of range; the message says what fits.
    """
    given = {
        "kv_ratio": kv_ratio, "kv_heads": kv_heads, "kv_bytes_per_token": kv_bytes_per_token, "kv_gib": kv_gib,
    }  # fmt: skip
    named = [f"`{name}`" for name, value in given.items() if value is not None]
    if len(named) != 1:
        got = " and ".join(named) or "none"
        raise ValueError(f"give exactly one of {', '.join(f'`{name}`' for name in given)}; got {got}")
    if kv_gib is None and (context is not None or batch is not None):
        raise ValueError("`context` and `batch` belong to `kv_gib`")
    if kv_ratio is not None:
        ratio, asked = kv_ratio, f"kv_ratio {kv_ratio:g}"
    elif kv_heads is not None:
        ratio, asked = _ratio_of_heads(source, kv_heads), f"kv_heads {kv_heads}"
    elif kv_bytes_per_token is not None:
        ratio, asked = kv_bytes_per_token / source.bytes_per_token, f"kv_bytes_per_token {kv_bytes_per_token}"
    else:
        assert kv_gib is not None
        if context is None or context < 1 or (batch is not None and batch < 1):
            raise ValueError(
                "`kv_gib` needs `context` (tokens per sequence, at least 1); `batch` must be at least 1"
            )
        ratio = kv_gib * GIB / source.bytes_at(context, batch or 1)
        asked = f"kv_gib {kv_gib:g}, context {context}, batch {batch or 1}"
        ratio = min(ratio, 1.0) if ratio > 0 else ratio  # more memory than the source's cache takes is fine
    if not math.isfinite(ratio) or not 0 < ratio <= 1:
        raise ValueError(
            f"{asked} is a kv_ratio of {ratio:g}; it must be above 0 and at most 1 "
            f"(the source keeps {source.bytes_per_token} bytes per token)"
        )
    return Budget(ratio, asked, kv_heads)


def _ratio_of_heads(source: CacheShape, kv_heads: int) -> float:
    counts = set(source.key_heads) | set(source.value_heads)
    if len(counts) > 1:
        raise ValueError(f"kv_heads needs the same number in every layer; the source has {sorted(counts)}")
    most = counts.pop()
    if not 1 <= kv_heads <= most:
        raise ValueError(f"kv_heads {kv_heads}: the source has {most} KV heads per layer, so 1 to {most}")
    return kv_heads / most


def fits(size: float | int, whole: float | int, kv_ratio: float | int) -> bool:
    """Whether `size` of `whole` is within the ratio: the one place that decides it.

    The slack of a millionth of a vector keeps two heads of three within `2/3` in floating point.
    """
    return size <= whole * kv_ratio + 1e-6
