"""What an allocation is: a budget and the layers in, the number of KV heads of every layer out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal


class Allocation(ABC):
    """A way to spend the budget over the layers. One file and one line in `gqakit.allocation` make a new one."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[Literal["nothing", "weights", "moments"]]

    @abstractmethod
    def allocate(self, num_heads: Sequence[int], kv_ratio: float, *, equal: bool) -> list[int]:
        """KV heads to keep in each layer.

        Args:
            num_heads: source KV heads of each layer.
            kv_ratio: cache bytes after / before, an upper bound.
            equal: whether the number must divide the source's in every layer.

        Raises:
            BudgetError: when not even one head a layer fits; names the nearest ratio that does.
        """
