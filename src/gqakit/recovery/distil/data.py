"""Which windows are held out, and which examples each step takes."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gqakit.errors import DataError


def split_windows(windows: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Windows to train on and windows held out, the latter evenly spread, so that each text has its share.

    Args:
        windows: `[windows, window]`. held_out: how many; 0 for a sixteenth, but at most 16.

    Raises:
        DataError: when nothing would be left to train on.
    """
    count = held_out or max(1, min(16, len(windows) // 16))
    if len(windows) <= count:
        raise DataError(
            f"the text gives {len(windows)} windows of {windows.shape[1]} tokens and {count} are to be held out: nothing "
            "is left to train on; give more text, or a smaller --window or --held-out"
        )
    chosen = torch.zeros(len(windows), dtype=torch.bool)
    chosen[[(2 * i + 1) * len(windows) // (2 * count) for i in range(count)]] = True
    return windows[~chosen], windows[chosen]


class Sampler:
    """The examples of a step, from its number alone: nothing to save, nothing to restore.

    The examples are shuffled anew for each epoch and laid end to end; a step takes the next so many.

    Args:
        size: examples. per_step: examples a step takes, over all processes. seed: of the shuffles.
    """

    def __init__(self, size: int, per_step: int, seed: int) -> None:
        self.size, self.per_step, self.seed = size, per_step, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def step(self, number: int) -> list[int]:
        """The examples of step `number`, counted from 0."""
        first = number * self.per_step
        places = (divmod(place, self.size) for place in range(first, first + self.per_step))
        return [self._order(epoch)[place] for epoch, place in places]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        return torch.randperm(self.size, generator=generator).tolist()


def mixed_seed(*numbers: int) -> int:
    """One seed for several numbers, different for different ones."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed


def micro_batches(
    indices: list[int], per_device: int, processes: int, rank: int, accumulation: int
) -> list[list[int]]:
    """One process's share of a step, micro-batch by micro-batch.

    However a step is divided, it is the same examples: two processes of one, or one process of two, add up alike.
    """
    starts = [(micro * processes + rank) * per_device for micro in range(accumulation)]
    return [indices[start : start + per_device] for start in starts]
