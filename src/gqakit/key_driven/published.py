"""Key-driven attention as its published code does it, so that the difference can be measured (arXiv 2408.08454).

What is kept: KV heads without any query head, batches that decide at evaluation too, a moving average that forgets all but
the last value, ties by chance (seeded here), noise that is uniform, has the mean of the output and stays at evaluation.
Norms are sums over the batch. A finished checkpoint gets the allocation of the last training step, without KV heads that no
query head reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gqakit.errors import TrainingError
from gqakit.key_driven.attention import KeyDrivenHeads, UpdateSchedule, diagonal
from gqakit.key_driven.published_allocation import published_by_norm, published_by_share


def summed_norms(key: Tensor) -> Tensor:
    """`[G]`, the Frobenius norm of each image's keys over positions and channels, summed over images."""
    return key.detach().float().square().sum((2, 3)).sqrt().sum(0)


class PublishedHeads(KeyDrivenHeads):
    """What the published versions share: the last training step's allocation is the one that is frozen."""

    def allocate(self, key: Tensor) -> tuple[int, ...]:
        """See the base class.

        Raises:
            TrainingError: where the published formula is 0/0, or a norm is not finite.
        """
        try:
            allocation = self.decide(summed_norms(key))
        except ValueError as error:
            raise TrainingError(
                f"layer {self.layer}: {error}; leave out `as_published`, which has an answer for equal norms, "
                "or lower the learning rate"
            ) from error
        if self.training:
            self.steps += 1
            self.allocation.copy_(torch.tensor(allocation))
        return allocation

    def decide(self, norms: Tensor) -> tuple[int, ...]:
        """The allocation for a batch with these norms, `[G]`."""
        raise NotImplementedError

    def frozen(self) -> tuple[int, ...]:
        return tuple(self.allocation.tolist())


class PublishedKeyDistributed(PublishedHeads):
    """KDGQA: by the batch at hand, in training and at evaluation."""

    def decide(self, norms: Tensor) -> tuple[int, ...]:
        return published_by_norm(norms.tolist(), self.num_heads)


class PublishedDynamic(PublishedHeads):
    """DGQA: at steps 0, window, 2 window, …; at evaluation at every batch, whose norms then stay in the cache.

    The cache is divided by the window after each training allocation, so it is close to nothing at the next.
    """

    cache: Tensor
    splits: Tensor

    def __init__(
        self, num_heads: int, num_kv_heads: int, layer: int, schedule: UpdateSchedule, *, by_change: bool
    ) -> None:
        super().__init__(num_heads, num_kv_heads, layer, schedule)
        self.by_change = by_change
        self.register_buffer("cache", torch.zeros(num_kv_heads))
        self.register_buffer(
            "splits", torch.tensor(self.equal)
        )  # evaluation changes it for the next training step

    def decide(self, norms: Tensor) -> tuple[int, ...]:
        if not self.training:
            self._split(norms)
            self.cache.copy_(norms)
        elif int(self.steps) % self.schedule.window == 0:
            self._split(norms)
            self.cache.copy_((self.cache + norms) / self.schedule.window)
        return tuple(self.splits.tolist())

    def _split(self, norms: Tensor) -> None:
        weights = (self.cache - norms).abs() if self.by_change else 0.9 * norms + 0.1 * self.cache
        chance = self.generator()

        def draw(below: int) -> int:
            return int(torch.randint(below, (), generator=chance))

        self.splits.copy_(torch.tensor(published_by_share(weights.tolist(), self.num_heads, draw)))


class PublishedPerturbed(PublishedHeads):
    """PGQA: the same noise for every image of a batch, standardised to each head's mean and deviation."""

    def decide(self, norms: Tensor) -> tuple[int, ...]:
        return self.equal

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        out = super().attend(query, key, value, *rest)
        return out - published_perturbation(out, self.equal, self.generator())


def published_perturbation(out: Tensor, allocation: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform noise with a zeroed diagonal, then shifted and scaled to each head's mean and deviation.

    After that the diagonal is no longer 0, and on average the noise takes the output's mean away.

    Args:
        out: `[B, H, T, d]`, what attention puts out. allocation: sizes of the groups.
        generator: on the CPU.
    """
    flat = out.flatten(2)
    noise = torch.rand(flat.shape[1:], generator=generator).to(out.device, out.dtype)
    for head, column in enumerate(diagonal(allocation)):
        noise[head, column] = 0
    noise = (noise - noise.mean(-1, keepdim=True)) / noise.std(-1, keepdim=True)
    return (noise * flat.std(-1, keepdim=True) + flat.mean(-1, keepdim=True)).view_as(out)
