"""The task of a causal language model: predict the next token, or what the teacher would predict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gqakit.recovery.distil.losses import (
    Targets,
    cross_entropy,
    divergence,
    hidden_distance,
    in_chunks,
    teacher_targets,
)
from gqakit.recovery.distil.options import LossWeights
from gqakit.recovery.distil.task import Batch, Losses


@dataclass(frozen=True)
class LanguageTask:
    """Windows of tokens, each on its own.

    Attributes:
        train, held_out: token ids, `[windows, window]`.
        weights: of the losses. temperature, top_k: of the divergence.
    """

    train: Tensor
    held_out: Tensor
    weights: LossWeights
    temperature: float = 1.0
    top_k: int = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """Windows of each kind."""
        return len(self.train), len(self.held_out)

    def batch(self, indices: Sequence[int], *, held_out: bool) -> Batch:
        """Those windows."""
        return {"input_ids": (self.held_out if held_out else self.train)[list(indices)]}

    def items(self, batch: Batch) -> int:
        """Predicted tokens: one less than the window for each window."""
        windows, length = batch["input_ids"].shape
        return windows * (length - 1)

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, *, every: bool) -> Losses:
        """Cross-entropy, divergence from the teacher, distance of hidden states: each where it has a weight.

        The parts are `ce`, `kl` (at the temperature, without its square) and `hidden`.
        """
        ids = batch["input_ids"]
        positions = ids.shape[1] - 1
        matching = teacher is not None and self.weights.hidden > 0
        targets, theirs = self._ask(teacher, ids, matching) if teacher is not None else (None, ())
        output = _run(student, ids, matching)
        weigh_ce, weigh_kl = self.weights.ce, self.weights.kl
        nothing = torch.zeros((), device=ids.device)

        def term(logits: Tensor, where: Any) -> Tensor:
            window, chunk = where
            ce = kl = nothing
            if weigh_ce or every:
                ce = cross_entropy(logits, ids[window, chunk.start + 1 : chunk.stop + 1])
            if targets is not None and (weigh_kl or every):
                kl = divergence(logits, targets.at(where), self.temperature)
            return torch.stack([weigh_ce * ce + weigh_kl * kl, ce, kl / self.temperature**2])

        sums = in_chunks(output.logits, positions, term, 2)
        parts = {"ce": sums[1].detach()} if weigh_ce or every else {}
        if targets is not None and (weigh_kl or every):
            parts["kl"] = sums[2].detach()
        total = sums[0]
        if matching:
            ours = tuple(state[:, :positions] for state in output.hidden_states[1:])
            distance = hidden_distance(ours, theirs)
            total = total + self.weights.hidden * distance
            parts["hidden"] = distance.detach()
        return Losses(total, parts)

    def _ask(self, teacher: nn.Module, ids: Tensor, matching: bool) -> tuple[Targets, tuple[Tensor, ...]]:
        """The teacher first, and only what is needed of it: both models' activations are never there at once."""
        with torch.no_grad():
            output = _run(teacher, ids, matching)
            targets = teacher_targets(output.logits, self.top_k, self.temperature)
            states = output.hidden_states[1:] if matching else ()
        return targets, tuple(state[:, : ids.shape[1] - 1] for state in states)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity, and the parts as they are."""
        perplexity = math.exp(means["ce"]) if means["ce"] < 700 else math.inf
        return {"perplexity": perplexity, **{name: value for name, value in means.items() if name != "ce"}}


def _run(model: nn.Module, ids: Tensor, hidden: bool) -> Any:
    return model(input_ids=ids, use_cache=False, output_hidden_states=hidden)
