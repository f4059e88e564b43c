"""The converted attention of one block, fitted so that the residual stream behind it is the source's again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gqakit.errors import GqakitError
from gqakit.models.processes import ALONE, Processes

WARM_UP = 10
"""Steps over which the learning rate rises."""


def relative_error(stream: Tensor, wanted: Tensor) -> Tensor:
    """Mean over tokens of `‖ŝ − s‖² / ‖s‖²`, both `[..., T, D]`.

    Relative, token by token: the normalisation that reads a stream sees no more than that, and a first token a
    thousand times larger than the others would else be all that is fitted.
    """
    energy = wanted.square().sum(-1).clamp_min(1e-30)
    return ((stream - wanted).square().sum(-1) / energy).mean()


@dataclass(frozen=True)
class FitSchedule:
    """The steps by which a layer is fitted.

    Attributes:
        steps: of Adam. batch: windows per step.
        learning_rate: as a share of each tensor's root mean square, so that it suits any model. Rises over the
            first steps, then falls as a cosine to zero.
        seed: of the order of windows.
    """

    steps: int
    batch: int
    learning_rate: float
    seed: int

    def order(self, windows: int, layer: int) -> Iterator[Tensor]:
        """Which windows each step takes: every one once before any comes again."""
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


@dataclass(frozen=True)
class LayerFit:
    """What is fitted of one block, and to what.

    Attributes:
        layer: its index, for the order of windows and for messages.
        parameters: of the block's attention; frozen again afterwards.
        stream: of what enters the block, `[B, T, D]`, and its window, the stream that is fitted, likewise.
        read: of a window, what enters and the stream that is wanted, `[B, T, D]` each.
        windows: number of windows to fit on.
    """

    layer: int
    parameters: list[torch.nn.Parameter]
    stream: Callable[[Tensor, int], Tensor]
    read: Callable[[int], tuple[Tensor, Tensor]]
    windows: int


def fit(
    job: LayerFit,
    schedule: FitSchedule,
    advance: Callable[[int], None],
    processes: Processes = ALONE,
) -> None:
    """Change the parameters so that the stream is what is wanted.

    Args:
        job: the layer. schedule: the steps.
        advance: called with 1 for each step.
        processes: that share the windows of each step.

    Raises:
        GqakitError: when the error is not finite.
    """
    groups = [
        {"params": [p], "own": schedule.learning_rate * float(p.detach().square().mean().sqrt())}
        for p in job.parameters
    ]
    optimiser = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
    try:
        for parameter in job.parameters:
            parameter.requires_grad_(True)
        for step, chosen in enumerate(schedule.order(job.windows, job.layer)):
            for group in optimiser.param_groups:
                group["lr"] = group["own"] * schedule.factor(step)
            for window in processes.mine(chosen.tolist()):
                entering, wanted = job.read(window)
                with torch.enable_grad():
                    error = relative_error(job.stream(entering, window), wanted) / len(chosen)
                if not bool(torch.isfinite(error.detach())):
                    raise GqakitError(
                        f"layer {job.layer}, step {step}: the error is {float(error.detach())}; try a smaller "
                        "`learning_rate`"
                    )
                error.backward()
            _add_up(job.parameters, processes)
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    finally:
        for parameter in job.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _add_up(parameters: list[torch.nn.Parameter], processes: Processes) -> None:
    """Make each process's gradients those over all."""
    if processes.count == 1:
        return
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        total = gradient.to("cpu", torch.float64)
        processes.add_up(total)
        parameter.grad = total.to(parameter)
