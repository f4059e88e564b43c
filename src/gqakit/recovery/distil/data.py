"""Which windows are held out, and the order in which a run takes its examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from gqakit.errors import DataError


def split_windows(windows: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Windows to train on and windows held out, the latter evenly spaced, so that each text has its share.

    Args:
        windows: `[windows, window]`.
        held_out: their number; 0 for a sixteenth, but at most 16.

    Raises:
        DataError: when nothing would be left to train on.
    """
    count = held_out or max(1, min(16, len(windows) // 16))
    if len(windows) <= count:
        raise DataError(
            f"the text gives {len(windows)} windows of {windows.shape[1]} tokens and {count} are to be held out: nothing "
            "is left to train on; give more text, or a smaller `window` or `held_out`"
        )
    chosen = torch.zeros(len(windows), dtype=torch.bool)
    chosen[[(2 * i + 1) * len(windows) // (2 * count) for i in range(count)]] = True
    return windows[~chosen], windows[chosen]


class RunSampler(Sampler[int]):
    """The examples of a whole run: shuffled afresh for each epoch, the epochs laid end to end.

    So a step takes the same examples however it is divided over processes and micro-batches: the Trainer deals batches out
    in this order, and no epoch ends in a short step.

    Args:
        size: number of examples. length: examples that the run takes. seed: of the shuffles.
    """

    def __init__(self, size: int, length: int, seed: int) -> None:
        self.size, self.length, self.seed = size, length, seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for epoch in range(-(-self.length // self.size)):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            left = self.length - epoch * self.size
            yield from torch.randperm(self.size, generator=generator).tolist()[:left]


def mixed_seed(*numbers: int) -> int:
    """One seed for several numbers, different for different ones."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed
