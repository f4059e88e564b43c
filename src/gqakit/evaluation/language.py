"""Perplexity of a language model, and how far it is from another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
    windows: Tensor,
    reference: nn.Module | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> LanguageScores:
    """Score a model on independent windows: each token of a window is predicted from those before it.

    Args:
        model: a causal language model in eval mode.
        windows: token ids, `[windows, window]`.
        reference: the source model, on the same device; None scores the source itself.
        progress: called with the tokens just scored.
    """
    nll = kl = agree = 0.0
    device = next(model.parameters()).device
    with torch.inference_mode():
        for window in windows.to(device):
            logp = model(input_ids=window[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            nll -= float(logp.gather(1, window[1:, None]).double().sum())
            if reference is None:
                agree += len(window) - 1
            else:
                true = (
                    reference(input_ids=window[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
                )
                agree += float((logp.argmax(-1) == true.argmax(-1)).sum())
                kl += float((true.exp() * (true - logp)).sum(-1).double().sum())
            progress(window.numel())
    count = windows.shape[0] * (windows.shape[1] - 1)
    mean = nll / count
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return LanguageScores(perplexity, kl / count, agree / count, count)
