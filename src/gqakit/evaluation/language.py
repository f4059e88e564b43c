"""Perplexity of a language model, and how far it is from another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gqakit.data.samples import Batch, as_batches, positions_of


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
    model: nn.Module,
    windows: Tensor | Sequence[Batch],
    reference: nn.Module | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> LanguageScores:
    """Score a model on independent inputs: each token is predicted from those before it.

    Args:
        model: a causal language model, or a decoder behind an encoder, in eval mode.
        windows: token ids, `[windows, window]`; or keyword arguments of forward passes with one sequence each.
        reference: the source model, on the same device; None scores the source itself.
        progress: called with the tokens just scored.
    """
    nll = kl = agree = 0.0
    count = 0
    device = next(model.parameters()).device
    with torch.inference_mode():
        for batch in as_batches(windows):
            inputs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}
            ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))[0]
            logp = model(**inputs).logits[0, :-1].float().log_softmax(-1)
            nll -= float(logp.gather(1, ids[1:, None]).double().sum())
            count += len(ids) - 1
            if reference is None:
                agree += len(ids) - 1
            else:
                true = reference(**inputs).logits[0, :-1].float().log_softmax(-1)
                agree += float((logp.argmax(-1) == true.argmax(-1)).sum())
                kl += float((true.exp() * (true - logp)).sum(-1).double().sum())
            progress(positions_of(batch))
    mean = nll / count
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return LanguageScores(perplexity, kl / count, agree / count, count)
