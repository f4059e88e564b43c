"""Perplexity of a language model, and how far it is from another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from gqakit.data.samples import Batch, as_batches, positions_of
from gqakit.evaluation.runners import Runner, as_runner
from gqakit.models.processes import ALONE, Processes


@dataclass(frozen=True)
class LanguageScores:
    """Averages over the predicted tokens of all windows.

    Attributes:
        perplexity: `exp` of the mean negative log-likelihood.
        kl: mean `KL(source ‖ model)` in nats; 0 for the source itself.
        top1: share of positions where the most likely token is the source's.
        tokens: predicted tokens, one less than the window for each window.
    """

    perplexity: float
    kl: float
    top1: float
    tokens: int


def score_language(
    model: nn.Module | Runner,
    windows: Tensor | Sequence[Batch] | Mapping[int, Batch],
    reference: nn.Module | Runner | None = None,
    progress: Callable[[int], None] = lambda n: None,
    processes: Processes = ALONE,
) -> LanguageScores:
    """Score a model on independent inputs: each token is predicted from those before it.

    Args:
        model: a causal language model, or a decoder behind an encoder, in eval mode; or what runs it.
        windows: token ids, `[windows, window]`; or keyword arguments of forward passes with one sequence each.
        reference: the source model, on the same device; None scores the source itself.
        progress: called with the tokens just scored.
        processes: that share the windows; the scores are those over all.
    """
    ours, theirs = as_runner(model), None if reference is None else as_runner(reference)
    sums = torch.zeros(
        4, dtype=torch.float64
    )  # of the negative log-likelihood, the divergence, equal choices, tokens
    batches = windows if isinstance(windows, Mapping) else dict(enumerate(as_batches(windows)))
    for window, batch in batches.items():
        sums += _window(ours, theirs, window, batch)
        progress(positions_of(batch))
    processes.add_up(sums)
    nll, kl, agree, count = sums.tolist()
    mean = nll / count
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return LanguageScores(perplexity, kl / count, agree / count, round(count))


@torch.no_grad()
def _window(ours: Runner, theirs: Runner | None, window: int, batch: Batch) -> Tensor:
    """The sums of one window, some positions at a time."""
    ids: Tensor = batch.get("decoder_input_ids", batch.get("input_ids"))[0]
    sums, done = torch.zeros(4, dtype=torch.float64), 0
    chunks = ours.logits(window, batch)
    beside = repeat(None) if theirs is None else theirs.logits(window, batch)
    for logits, source in zip(chunks, beside, strict=theirs is not None):
        wanted = ids[done + 1 : done + 1 + len(logits)].to(logits.device)
        done += len(logits)
        logp = logits[: len(wanted)].float().log_softmax(-1)  # the last position predicts what nobody knows
        sums[0] -= _sum(logp.gather(1, wanted[:, None]))
        sums[3] += len(wanted)
        if source is None:
            sums[2] += len(wanted)
            continue
        true = source[: len(wanted)].float().log_softmax(-1)
        sums[1] += _sum((true.exp() * (true - logp)).sum(-1))
        sums[2] += _sum(logp.argmax(-1) == true.argmax(-1))
    return sums


def _sum(values: Tensor) -> float:
    return float(values.cpu().double().sum())
