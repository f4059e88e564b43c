"""`uniform`: every layer keeps the same share of its heads."""

from __future__ import annotations

from collections.abc import Sequence

from gqakit.allocation.base import Allocation
from gqakit.core.capacity import heads_within
from gqakit.errors import BudgetError


class Uniform(Allocation):
    """The most heads in every layer that stay within the ratio."""

    name = "uniform"
    summary = "the same share of heads in every layer"
    source = "GQA, arXiv 2305.13245"
    needs = "nothing"

    def allocate(self, num_heads: Sequence[int], kv_ratio: float, *, equal: bool) -> list[int]:
        """See the class."""
        kept: list[int] = []
        for layer, heads in enumerate(num_heads):
            possible = [n for n in range(1, heads + 1) if not equal or heads % n == 0]
            within = heads_within(heads, kv_ratio)
            fitting = [n for n in possible if n <= within]
            if not fitting:
                raise BudgetError(
                    f"a kv_ratio of {kv_ratio:.4g} leaves layer {layer} less than one of its {heads} KV heads; "
                    f"the smallest that can be met is {1 / heads:.4f} (one KV head a layer)"
                )
            kept.append(max(fitting))
        return kept
