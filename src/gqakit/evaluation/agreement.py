"""How alike two encoders are on the same input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import PreTrainedModel

from gqakit.data.samples import Batch, positions_of

Pooling = Literal["mean", "first"]


@dataclass(frozen=True)
class AgreementScores:
    """Agreement of the embeddings with the source's.

    Attributes:
        cosine: mean cosine between the two embeddings of an input; 1 for the source itself.
        error: squared error of the last hidden state, relative to its energy.
        neighbours: share of each input's 5 nearest other inputs that are the same in both.
        inputs: how many were embedded.
    """

    cosine: float
    error: float
    neighbours: float
    inputs: int


def embed(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    pooling: Pooling,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[Tensor, list[Tensor]]:
    """Embeddings `[inputs, D]` and the last hidden states, batch by batch.

    Args:
        model: an encoder in eval mode.
        batches: its inputs; with an `attention_mask` only what it marks is pooled.
        pooling: mean over positions, or the first position.
        progress: called with the positions just seen.
    """
    device = next(model.parameters()).device
    pooled: list[Tensor] = []
    states: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            inputs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}
            output: Any = model.base_model(**inputs)
            hidden = output.last_hidden_state.float()
            mask = inputs.get("attention_mask")
            if pooling == "first":
                pooled.append(hidden[:, 0])
            elif mask is None:
                pooled.append(hidden.mean(1))
            else:
                weights = mask[..., None].float()
                pooled.append((hidden * weights).sum(1) / weights.sum(1))
            states.append(hidden)
            progress(positions_of(batch))
    return torch.cat(pooled), states


def agreement(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]]) -> AgreementScores:
    """Compare what `embed` gave for two models on the same input; the source's comes second."""
    error = sum(float((a - b).double().square().sum()) for a, b in zip(ours[1], theirs[1], strict=True))
    energy = sum(float(b.double().square().sum()) for b in theirs[1])
    return AgreementScores(
        cosine=float(cosine_similarity(ours[0], theirs[0]).double().mean()),
        error=error / energy,
        neighbours=_same_neighbours(ours[0], theirs[0]),
        inputs=len(ours[0]),
    )


def _same_neighbours(ours: Tensor, theirs: Tensor, count: int = 5) -> float:
    count = min(count, len(ours) - 1)
    if count < 1:
        return 1.0
    nearest: list[Tensor] = []
    for each in (ours, theirs):
        unit = normalize(each, dim=-1)
        alike = (unit @ unit.T).fill_diagonal_(-torch.inf)
        nearest.append(alike.topk(count).indices)
    same = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(-1)
    return float(same.double().mean())
