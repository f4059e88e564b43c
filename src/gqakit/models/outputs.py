"""What a model puts out, whatever its head is: scores to choose by, or states."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Output:
    """The output of one batch.

    Attributes:
        values: what the head gives, in float32: logits `[..., choices]` or states of any shape; one tensor or several.
        is_logits: whether they are a head's logits, of one choice or several.
    """

    values: tuple[Tensor, ...]
    is_logits: bool

    @property
    def predicts(self) -> bool:
        """Whether they are logits over more than one choice, so that their softmax means something."""
        return self.is_logits and all(each.shape[-1] > 1 for each in self.values)

    @classmethod
    def of(cls, made: Any) -> Output:
        """From what a forward pass of transformers returns."""
        logits = tuple(value for name, value in made.items() if name.endswith(("logits", "logits_per_image")))
        if logits:
            return cls(tuple(each.float() for each in logits), True)
        return cls((next(_tensors(made)).float(),), False)

    def divergence(self, changed: Output) -> float:
        """Of another model's output from this one: mean `KL` in nats of logits, else `relative_error`."""
        if not self.predicts:
            return self.relative_error(changed)
        pairs = zip(self.log_probs, changed.log_probs, strict=True)
        return sum(_kl(ours, theirs) for ours, theirs in pairs) / len(self.values)

    @cached_property
    def log_probs(self) -> tuple[Tensor, ...]:
        """Of logits: the log-probability of each choice."""
        return tuple(each.log_softmax(-1) for each in self.values)

    def same_choice(self, changed: Output) -> float:
        """Share of rows of logits whose largest is the same choice in both."""
        pairs = zip(self.values, changed.values, strict=True)
        same = [(ours.argmax(-1) == theirs.argmax(-1)).double().mean() for ours, theirs in pairs]
        return float(sum(same) / len(same))

    def relative_error(self, changed: Output) -> float:
        """Squared error relative to this output's energy."""
        pairs = list(zip(self.values, changed.values, strict=True))
        error = sum(float((ours - theirs).double().square().sum()) for ours, theirs in pairs)
        return error / max(sum(float(ours.double().square().sum()) for ours, _ in pairs), 1e-300)


def _kl(ours: Tensor, theirs: Tensor) -> float:
    """Mean over positions of `KL(ours ‖ theirs)` of log-probabilities."""
    return float((ours.exp() * (ours - theirs)).sum(-1).double().mean())


def _tensors(made: Any) -> Iterator[Tensor]:
    """The tensors of an output in order, those of its tuples too (feature maps of a backbone)."""
    for name, value in made.items():
        if name in ("loss", "past_key_values"):
            continue
        yield from (
            each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Tensor)
        )


def keeps_logits(model: PreTrainedModel, positions: int | Tensor) -> dict[str, Any]:
    """The argument that has a language model make logits at some positions only; nothing for other classes."""
    return (
        {"logits_to_keep": positions}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )


def predicts_tokens(model: PreTrainedModel) -> bool:
    """Whether the model predicts each token from those before it: a decoder with its language head."""
    from transformers.generation.utils import GenerationMixin

    return isinstance(model, GenerationMixin) and model.get_output_embeddings() is not None


def run(model: PreTrainedModel, batch: Any) -> Any:
    """One forward pass without gradients, on the model's device."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    with torch.inference_mode():
        return model(**inputs)
