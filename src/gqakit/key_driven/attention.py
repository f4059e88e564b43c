"""Key-driven attention for training: how many query heads read each KV head follows the norms of its keys.

Key-Driven Grouped Query Attention (arXiv 2408.08454). Query heads stay in order, so an allocation says everything: the
first `allocation[0]` query heads read KV head 0, and so on. Each class stands in an attention module where `GroupedHeads`
stands in a finished model, and does its work through it. How each differs from the paper is in docs/key-driven.md; the
published behaviour is in `published.py`.
Axes: B images, H query heads, G KV heads, T positions, d channels a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from gqakit.core.key_allocation import allot, contiguous_map, equal_allocation, min_max
from gqakit.models.remote_code.attention import GroupedHeads
from gqakit.models.remote_code.heads import HeadMaps
from gqakit.recovery.distil.data import mixed_seed


@dataclass(frozen=True)
class UpdateSchedule:
    """When and from what allocations are made.

    Attributes:
        window: steps between two allocations of DGQA.
        decay: of the moving average of norms, per step: the weight of what it was.
        seed: of noise and of published ties.
    """

    window: int = 300
    decay: float = 0.99
    seed: int = 0


class KeyDrivenHeads(nn.Module, ABC):
    """Attention of one layer with an allocation that training changes.

    Args:
        num_heads, num_kv_heads: H and G. layer: its index, which seeds its noise. schedule: see there.

    Buffers, which a run's checkpoints hold:
        average: `[G]`, the moving average of key norms over training steps.
        allocation: `[G]`, query heads of each KV head.
        steps: training steps so far. draws: number of draws of noise so far.
    """

    average: Tensor
    allocation: Tensor
    steps: Tensor
    draws: Tensor

    def __init__(self, num_heads: int, num_kv_heads: int, layer: int, schedule: UpdateSchedule) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.layer, self.schedule = layer, schedule
        self.register_buffer("average", torch.zeros(num_kv_heads))
        self.register_buffer("allocation", torch.tensor(self.equal))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    @property
    def equal(self) -> tuple[int, ...]:
        """The allocation of plain grouped-query attention."""
        return equal_allocation(self.num_heads, self.num_kv_heads)

    @abstractmethod
    def allocate(self, key: Tensor) -> tuple[int, ...]:
        """The allocation for a batch with these keys, `[B, G, T, d]`. In training it is a step."""

    @abstractmethod
    def frozen(self) -> tuple[int, ...]:
        """The allocation that a finished checkpoint gets."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        """See `GroupedHeads.attend`; KV heads that no query head reads are left out."""
        allocation = self.allocate(key)
        used = [group for group, count in enumerate(allocation) if count]
        if len(used) < len(allocation):
            key, value = key[:, used], value[:, used]
        heads = grouped_heads(tuple(count for count in allocation if count))
        return heads.attend(query, key, value, *rest)

    def observe(self, norms: Tensor) -> None:
        """One training step: norms go into the moving average, which begins at the first of them.

        Norms that are not finite are left out; the loss of that step says the rest.
        """
        if bool(torch.isfinite(norms).all()):
            begun = bool(self.steps)
            self.average.copy_(self.average.lerp(norms, 1 - self.schedule.decay) if begun else norms)
        self.steps += 1

    def generator(self) -> torch.Generator:
        """A generator for one draw, made of saved numbers alone, so that a resumed run draws the same."""
        self.draws += 1
        return torch.Generator().manual_seed(mixed_seed(self.schedule.seed, self.layer, int(self.draws)))


@lru_cache(maxsize=512)
def grouped_heads(allocation: tuple[int, ...]) -> GroupedHeads:
    """The attention of an allocation without zeros."""
    labels = contiguous_map(allocation)
    return GroupedHeads(HeadMaps(labels, labels))


def key_norms(key: Tensor) -> Tensor:
    """`[G]`, the Frobenius norm of each image's keys over positions and channels, averaged over images."""
    return key.detach().float().square().sum((2, 3)).sqrt().mean(0)


class KeyDistributed(KeyDrivenHeads):
    """KDGQA: in training every batch has its own allocation, by the min-max scaled norms of its keys.

    Outside of training, and in the checkpoint, the moving average stands in for the batch.
    """

    def allocate(self, key: Tensor) -> tuple[int, ...]:
        if not self.training:
            return self.frozen()
        norms = key_norms(key)
        self.observe(norms)
        if not bool(torch.isfinite(norms).all()):
            return self.frozen()
        return allot(min_max(norms.tolist()), self.num_heads)

    def frozen(self) -> tuple[int, ...]:
        return allot(min_max(self.average.tolist()), self.num_heads)


class DynamicKeyDistributed(KeyDrivenHeads):
    """DGQA: a new allocation after every `window` training steps; until the first it is that of plain grouping.

    Shares are proportional to the moving average of the norms ("ema"), or to how far that average moved
    over the window ("diff").

    Args:
        by_change: the second.
    """

    before: Tensor

    def __init__(
        self, num_heads: int, num_kv_heads: int, layer: int, schedule: UpdateSchedule, *, by_change: bool
    ) -> None:
        super().__init__(num_heads, num_kv_heads, layer, schedule)
        self.by_change = by_change
        self.register_buffer("before", torch.zeros(num_kv_heads))  # the average at the start of the window

    def allocate(self, key: Tensor) -> tuple[int, ...]:
        if self.training:
            self.observe(key_norms(key))
            if int(self.steps) == 1:
                self.before.copy_(self.average)
            if int(self.steps) % self.schedule.window == 0:
                weights = (self.average - self.before).abs() if self.by_change else self.average
                self.allocation.copy_(torch.tensor(allot(weights.tolist(), self.num_heads)))
                self.before.copy_(self.average)
        return self.frozen()

    def frozen(self) -> tuple[int, ...]:
        return tuple(self.allocation.tolist())


class Perturbed(KeyDrivenHeads):
    """PGQA: plain grouping, with noise subtracted from what attention puts out, in training alone."""

    def allocate(self, key: Tensor) -> tuple[int, ...]:
        return self.equal

    def frozen(self) -> tuple[int, ...]:
        return self.equal

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        out = super().attend(query, key, value, *rest)
        return out - perturbation(out, self.equal, self.generator()) if self.training else out


def perturbation(out: Tensor, allocation: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise of mean 0 with each head's own deviation, 0 on the diagonal of every group's matrix.

    A group's matrix has a row for each of its query heads and `T d` columns; its diagonal is one number per head.

    Args:
        out: `[B, H, T, d]`, what attention puts out. allocation: sizes of the groups.
        generator: on the CPU.
    """
    noise = torch.randn(out.shape, generator=generator).to(out.device, out.dtype).flatten(2)
    for head, column in enumerate(diagonal(allocation)):
        noise[:, head, column] = 0
    deviation = out.flatten(2).std(-1, keepdim=True)
    return (noise * deviation).view_as(out)


def diagonal(allocation: tuple[int, ...]) -> list[int]:
    """The column of the diagonal in each query head's row of its group's matrix."""
    return [place for count in allocation for place in range(count)]
