"""What uptraining minimises, as functions of logits and hidden states: sums over positions, in float32.

Axes: B windows, T positions, V vocabulary, K kept tokens, D width, n positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

POSITIONS = 256
"""Positions whose losses are worked out at a time."""


@dataclass(frozen=True)
class Targets:
    """What a teacher says of each position: its logits, or those of its most likely tokens and one bucket for the rest.

    Attributes:
        logits: `[..., V]`; None where only the most likely are kept.
        index: `[..., K]`, the kept tokens. log_probs: `[..., K]`, theirs at the temperature.
        rest: `[...]`, log-probability of all other tokens together.
    """

    logits: Tensor | None = None
    index: Tensor | None = None
    log_probs: Tensor | None = None
    rest: Tensor | None = None

    def at(self, where: Any) -> Targets:
        """The targets of some positions."""
        parts = (self.logits, self.index, self.log_probs, self.rest)
        return Targets(*(None if part is None else part[where] for part in parts))


def teacher_targets(logits: Tensor, top_k: int, temperature: float) -> Targets:
    """What to keep of a teacher's logits.

    Args:
        logits: `[..., V]`.
        top_k: tokens kept per position; 0, or as many as there are, keeps the logits as they are.
        temperature: that of the divergence.
    """
    if not 0 < top_k < logits.shape[-1]:
        return Targets(logits=logits)
    scaled = logits.float() / temperature
    total = scaled.logsumexp(-1)
    values, index = scaled.topk(top_k, dim=-1)
    rest = scaled.scatter(-1, index, -torch.inf).logsumexp(-1)
    return Targets(None, index, values - total.unsqueeze(-1), rest - total)


def divergence(logits: Tensor, targets: Targets, temperature: float) -> Tensor:
    """`T² Σ KL(teacher ‖ student)` in nats over positions, both at temperature T (Hinton et al., arXiv 1503.02531).

    Of top-k targets the divergence is that of the coarser distributions, with every other token in one bucket: never
    more than the full one, and the same where the student is right about the rest.

    Args:
        logits: the student's, `[n, V]`. targets: of the same positions.
    """
    scaled = logits.float() / temperature
    if targets.logits is not None:
        student = scaled.log_softmax(-1)
        teacher = (targets.logits.float() / temperature).log_softmax(-1)
        return temperature**2 * functional.kl_div(student, teacher, reduction="sum", log_target=True)
    assert targets.index is not None
    assert targets.log_probs is not None
    assert targets.rest is not None
    total = scaled.logsumexp(-1)
    kept = scaled.gather(-1, targets.index) - total.unsqueeze(-1)
    # Not 1 - Σ: where that is nearly nothing its gradient is noise.
    rest = scaled.scatter(-1, targets.index, -torch.inf).logsumexp(-1) - total
    inside = (targets.log_probs.exp() * (targets.log_probs - kept)).sum()
    return temperature**2 * (inside + (targets.rest.exp() * (targets.rest - rest)).sum())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`-Σ log p(label)` in nats, for logits `[n, V]` and labels `[n]`."""
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def hidden_distance(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """`Σ_positions mean_layers ‖s - t‖² / ‖t‖²`: each position's own error, so that no large activation rules it.

    Args:
        student, teacher: what each layer puts out, `[B, T, D]` each.
    """
    total = torch.zeros((), device=student[0].device)
    for ours, theirs in zip(student, teacher, strict=True):
        difference = (ours.float() - theirs.float()).square().sum(-1)
        total = total + (difference / theirs.float().square().sum(-1).clamp_min(1e-12)).sum()
    return total / len(student)


Term = Callable[[Tensor, Any], Tensor]
"""A loss of logits `[n, V]` at a place `(window, slice of positions)`, and parts of it to report: `[1 + parts]`."""


def in_chunks(logits: Tensor, positions: int, term: Term, parts: int) -> Tensor:
    """The sum of a term over positions, a chunk at a time: beside the logits only their gradient is as large as they.

    Args:
        logits: `[B, T, V]`.
        positions: number of positions of each window that count, from the first.
        term: what to sum; its first element is what is differentiated.
        parts: number of values that it reports beside that.

    Returns:
        `[1 + parts]`; a gradient flows through the first element alone.
    """
    return _InChunks.apply(logits, positions, term, parts)  # pyright: ignore[reportReturnType]


class _InChunks(torch.autograd.Function):
    """Gradients are made together with the values, while a chunk's intermediates are there."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positions: int, term: Term, parts: int) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if wanted else None
        total = torch.zeros(1 + parts, dtype=torch.float64, device=logits.device)
        for window in range(len(logits)):
            for start in range(0, positions, POSITIONS):
                where = (window, slice(start, min(start + POSITIONS, positions)))
                with torch.set_grad_enabled(wanted):
                    chunk = logits[where].detach().requires_grad_(wanted)
                    values = term(chunk, where)
                    if gradient is not None:
                        (gradient[where],) = torch.autograd.grad(values[0], chunk)
                total += values.detach()
        ctx.gradient = gradient
        return total.float()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = ctx.gradient
        ctx.gradient = None  # it is as large as the logits: free it as soon as may be
        return gradient.mul_(outputs[0][0].to(gradient.dtype)), None, None, None
