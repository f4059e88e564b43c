"""How alike two models are on the same input: their embeddings, or what their heads choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from gqakit.data.samples import Batch, positions_of
from gqakit.evaluation.runners import Runner, as_runner
from gqakit.models.outputs import Output
from gqakit.models.processes import ALONE, Processes

Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True)
class AgreementScores:
    """Agreement of the embeddings with the source's.

    Attributes:
        cosine: mean cosine between the two embeddings of an input; 1 for the source itself.
        error: squared error of the states that the model puts out, relative to their energy.
        neighbours: share of each input's 5 nearest other inputs that are the same in both.
        inputs: how many were embedded.
    """

    cosine: float
    error: float
    neighbours: float
    inputs: int


def embed(
    model: nn.Module | Runner,
    batches: Sequence[Batch] | Mapping[int, Batch],
    pooling: Pooling,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[Tensor, list[Tensor]]:
    """Embeddings `[inputs, D]` and the states that they are made of, batch by batch.

    Args:
        model: in eval mode; its first output are states `[B, T, D]`, feature maps `[B, C, h, w]` or embeddings `[B, D]`.
        batches: its inputs; with an `attention_mask` only what it marks is pooled.
        pooling: of states: their mean over positions, or the first or the last position.
        progress: called with the positions just seen.
    """
    pooled: list[Tensor] = []
    states: list[Tensor] = []
    runner = as_runner(model)
    for window, batch in _numbered(batches):
        hidden = Output.of(runner.run(window, batch)).values[0]
        pooled.append(_pooled(hidden, batch.get("attention_mask"), pooling))
        states.append(hidden)
        progress(positions_of(batch))
    return torch.cat(pooled) if pooled else torch.empty(0, 1), states


def _numbered(batches: Sequence[Batch] | Mapping[int, Batch]) -> Iterable[tuple[int, Batch]]:
    return batches.items() if isinstance(batches, Mapping) else enumerate(batches)


def _pooled(hidden: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """One embedding of each input, `[B, D]`."""
    if hidden.ndim == 2:
        return hidden
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    if pooling != "mean":
        return hidden[:, 0 if pooling == "first" else -1]
    if mask is None:
        return hidden.mean(1)
    weights = mask[..., None].to(hidden)
    return (hidden * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class HeadScores:
    """Agreement of what a head puts out with what the source's does.

    Attributes:
        kl: mean `KL(source ‖ model)` in nats over the rows of logits; None for a head with one output, as a reward model.
        error: squared error of the logits relative to their energy.
        top1: share of rows where the largest logit is the source's; None as `kl`.
        inputs: how many were scored.
    """

    kl: float | None
    error: float
    top1: float | None
    inputs: int


def head_outputs(
    model: nn.Module | Runner,
    batches: Sequence[Batch] | Mapping[int, Batch],
    progress: Callable[[int], None] = lambda n: None,
) -> list[Output]:
    """What a model with a head puts out, batch by batch."""
    outputs: list[Output] = []
    runner = as_runner(model)
    for window, batch in _numbered(batches):
        outputs.append(Output.of(runner.run(window, batch)))
        progress(positions_of(batch))
    return outputs


def head_scores(ours: Sequence[Output], theirs: Sequence[Output], processes: Processes = ALONE) -> HeadScores:
    """Compare what `head_outputs` gave for two models on the same input; the source's comes second.

    Args:
        ours, theirs: outputs. processes: that share the input; the scores are those over all.
    """
    pairs = [(source, changed) for source, changed in zip(theirs, ours, strict=True)]
    inputs = processes.total(sum(len(source.values[0]) for source in theirs))

    def mean(measure: Callable[[Output, Output], float]) -> float:
        total = torch.tensor(
            sum(measure(*pair) * len(pair[0].values[0]) for pair in pairs), dtype=torch.float64
        )
        processes.add_up(total)
        return float(total) / inputs

    error = mean(Output.relative_error)
    if not all(processes.every(all(each.predicts for each in theirs))):
        return HeadScores(None, error, None, inputs)
    return HeadScores(mean(Output.divergence), error, mean(Output.same_choice), inputs)


def agreement(
    ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], processes: Processes = ALONE
) -> AgreementScores:
    """Compare what `embed` gave for two models on the same input; the source's comes second.

    Args:
        ours, theirs: embeddings and states. processes: that share the input; the scores are those over all.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for a, b in zip(ours[1], theirs[1], strict=True):
        sums[0] += float((a - b).cpu().double().square().sum())
        sums[1] += float(b.cpu().double().square().sum())
    processes.add_up(sums)
    mine, its = (
        torch.cat([part for part in processes.every(each[0].cpu()) if len(part)]) for each in (ours, theirs)
    )
    return AgreementScores(
        cosine=float(cosine_similarity(mine, its).double().mean()),
        error=float(sums[0] / sums[1]),
        neighbours=_same_neighbours(mine, its),
        inputs=len(mine),
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
