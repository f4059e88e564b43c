"""A random number whose gradient at anything inside a model says what a small change there costs the output."""

from __future__ import annotations

import torch
from torch import Tensor

from gqakit.models.outputs import Output


def sampled_score(output: Output, rng: torch.Generator) -> Tensor:
    """A scalar `S` with `½ E[(S' · δ)²] = Output.divergence` to second order, for any small change `δ` of the output.

    Of predictions it is `Σ log p(y)` with every `y` drawn from them, over the square root of their number, so that it gives
    the mean `KL`. Of states it is their inner product with random signs, scaled so that it gives the squared error relative
    to their energy (`E[c cᵀ] = I`, so `E[(c · δ)²] = |δ|²`).

    Args:
        output: with a graph behind it.
        rng: on the CPU, so that every device draws the same.
    """
    parts = [_sampled(logits, rng) for logits in output.values] if output.predicts else []
    if parts:
        return torch.stack(parts).sum() / len(parts) ** 0.5
    energy = sum(float(each.detach().double().square().sum()) for each in output.values)
    signs = [torch.randint(2, each.shape, generator=rng).mul_(2).sub_(1) for each in output.values]
    inner = [(each * sign.to(each)).sum() for each, sign in zip(output.values, signs, strict=True)]
    return torch.stack(inner).sum() * (2 / max(energy, 1e-300)) ** 0.5


def _sampled(logits: Tensor, rng: torch.Generator) -> Tensor:
    """`Σ log p(y) / √n` over `n` predictions, `[..., choices]`."""
    log_probs = logits.flatten(0, -2).log_softmax(-1)
    share = torch.rand(len(log_probs), 1, generator=rng).to(log_probs)
    total = log_probs.detach().exp().cumsum(-1)
    drawn = torch.searchsorted(total, share * total[:, -1:]).clamp_max(log_probs.shape[-1] - 1)
    return log_probs.gather(1, drawn).sum() / len(log_probs) ** 0.5
