"""One converted attention layer, fitted so that the residual stream behind it is the source's again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gqakit.errors import GqakitError

WARM_UP = 10
"""Steps over which the learning rate rises."""


@dataclass(frozen=True)
class Batch:
    """Some windows of one layer. Windows B, positions T, width D.

    Attributes:
        hidden: what enters the converted block, `[B, T, D]`.
        wanted: what its attention should add, `[B, T, D]`: the source's stream behind attention less `hidden`.
        weight: for each token one over the energy of the source's stream, `[B, T, 1]`.
    """

    hidden: Tensor
    wanted: Tensor
    weight: Tensor

    def error(self, output: Tensor) -> Tensor:
        """Mean over tokens of `‖ŝ − s‖² / ‖s‖²`, `s` the source's stream behind attention and `ŝ` ours.

        Relative, token by token: the normalisation that reads the stream sees no more than that, and a first
        token a thousand times larger than the others would else be all that is fitted.
        """
        return ((output - self.wanted).square().sum(-1, keepdim=True) * self.weight).mean()


@dataclass(frozen=True)
class Schedule:
    """How a layer is fitted.

    Attributes:
        steps: of Adam.
        batch: windows a step.
        learning_rate: as a share of each tensor's root mean square, so that it suits any model. Rises over the
            first steps, then falls as a cosine to zero.
        seed: of the order of windows.
    """

    steps: int
    batch: int
    learning_rate: float
    seed: int

    def order(self, windows: int, layer: int) -> Iterator[Tensor]:
        """Which windows each step sees: every one once before any comes again."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
        waiting = torch.empty(0, dtype=torch.int64)
        for _ in range(self.steps):
            while len(waiting) < self.batch:
                waiting = torch.cat([waiting, torch.randperm(windows, generator=generator)])
            yield waiting[: self.batch]
            waiting = waiting[self.batch :]

    def factor(self, step: int) -> float:
        """The share of the learning rate at a step."""
        return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit(
    attend: Callable[[Tensor], Tensor],
    parameters: list[torch.nn.Parameter],
    batches: Callable[[Tensor], Batch],
    windows: int,
    schedule: Schedule,
    layer: int,
    advance: Callable[[int], None],
) -> None:
    """Change the parameters so that `attend` gives what is wanted.

    Args:
        attend: hidden states to the attention's output.
        parameters: of it; frozen again afterwards.
        batches: windows by their indices.
        windows: how many there are to fit on.
        schedule: how. layer: index, for the order and for messages.
        advance: called with 1 for each step.

    Raises:
        GqakitError: when the error is not finite.
    """
    groups = [
        {"params": [p], "own": schedule.learning_rate * float(p.detach().square().mean().sqrt())}
        for p in parameters
    ]
    optimiser = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for step, chosen in enumerate(schedule.order(windows, layer)):
            for group in optimiser.param_groups:
                group["lr"] = group["own"] * schedule.factor(step)
            batch = batches(chosen)
            with torch.enable_grad():
                error = batch.error(attend(batch.hidden))
            if not bool(torch.isfinite(error.detach())):
                raise GqakitError(
                    f"layer {layer}, step {step}: the error is {float(error.detach())}; try a smaller --learning-rate"
                )
            error.backward()
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
