"""`refit`: the output projection fitted once more, on what the converted heads really deliver.

Merge rules weigh each head's error alone. The errors of heads partly cancel in the output, and
a ridge regression of `W_O` on the converted layer's own activations uses that. It is fitted against the
original layer *on the same input*, and kept only where a held-out slice improves: fitted against the
original stream it helps a little at mild ratios and does harm at harsh ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.linalg import solve


@dataclass(frozen=True)
class OutputMoments:
    """Sums over tokens, for one layer.

    `heads` is `Σ a aᵀ` with `a` the concatenated converted heads before `W_O`; `cross` is `Σ y aᵀ` with `y`
    what the original layer puts out (without bias); `target` is `Σ ‖y‖²`.
    """

    heads: Float[Tensor, "inner inner"]
    cross: Float[Tensor, "width inner"]
    target: float

    def __add__(self, other: OutputMoments) -> OutputMoments:
        return OutputMoments(self.heads + other.heads, self.cross + other.cross, self.target + other.target)

    def error(self, output: Float[Tensor, "width inner"]) -> float:
        """`Σ ‖y − W_O a‖²`."""
        out = output.double()
        return float(self.target - 2 * (out * self.cross).sum() + ((out @ self.heads) * out).sum())


def ridge_refit(
    output: Float[Tensor, "width inner"], moments: OutputMoments, ridge: float
) -> Float[Tensor, "width inner"]:
    """`argmin_W Σ ‖y − W a‖² + λ ‖W − W_O‖²`, `λ = ridge · trace(Σ a aᵀ) / inner`.

    The pull is towards the present weights, so directions that the text never shows stay as they are.
    """
    out = output.double()
    gram = moments.heads.double()
    strength = ridge * gram.diagonal().mean().clamp_min(1e-30)
    system = gram + strength * torch.eye(gram.shape[0], dtype=gram.dtype)
    step = solve(system, (moments.cross.double() - out @ gram).mT).mT
    return (out + step).to(output.dtype)


def guarded_refit(
    output: Float[Tensor, "width inner"],
    fit: OutputMoments,
    held_out: OutputMoments,
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1),
) -> tuple[Float[Tensor, "width inner"], float | None]:
    """The refit whose held-out error is least, or the weights as they were.

    Returns:
        The weights and the ridge that was chosen; None where nothing improved the held-out slice.
    """
    best, chosen, least = output, None, held_out.error(output)
    for ridge in ridges:
        candidate = ridge_refit(output, fit, ridge)
        error = held_out.error(candidate)
        if error < least:
            best, chosen, least = candidate, ridge, error
    return best, chosen
