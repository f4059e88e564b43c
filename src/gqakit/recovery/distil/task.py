"""What the training run asks of the thing that is trained: batches in, losses out.

The run knows neither text nor images. A new task (image classification, masked or sequence-to-sequence models) is one
class with these five members; see `gqakit.recovery.distil.language` for the one of language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Losses:
    """Sums over the items of a batch, never means: the run divides by the items of a whole step.

    Attributes:
        total: what is minimised, a scalar with a gradient.
        parts: what to report, scalars without.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


class Task(Protocol):
    """Examples by number, split into those to train on and those held out, and their losses."""

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of examples to train on, and of those held out."""
        ...

    def batch(self, indices: Sequence[int], *, held_out: bool) -> Batch:
        """Those examples, on the CPU. The same indices must always give the same batch."""
        ...

    def items(self, batch: Batch) -> int:
        """What its losses are sums over: predicted tokens, images, …"""
        ...

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, *, every: bool) -> Losses:
        """The losses of a batch on the models' device.

        Args:
            student: trained; it may be wrapped, so it must be called, not taken apart.
            teacher: frozen, or None.
            batch: from `batch`.
            every: report also the parts that have no weight.
        """
        ...

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """What people read, from the mean of each part over the held-out items."""
        ...
