"""Everything one can choose about uptraining, with the Hugging Face Trainer's names where it has one. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from gqakit.errors import UsageError

TRAINED = ("all", "attention", "lora")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bf16")
TRACKERS = ("tensorboard", "wandb", "trackio")
OUTPUT_DTYPES = ("same", "float32", "bfloat16", "float16")

_LOSS = "Losses (by default divergence from the teacher; without a teacher cross-entropy)"
_WHAT = "What is trained"
_STEPS = "Optimisation"
_DATA = "Data"
_WATCH = "Evaluation and saving"


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts."""

    ce: float
    kl: float
    hidden: float


def _option(default: Any, panel: str, help: str) -> Any:
    return field(default=default, metadata={"panel": panel, "help": help})


@dataclass(frozen=True)
class UptrainOptions:
    """The options of a run; with the model, the teacher and the text they determine its result.

    Raises:
        UsageError: naming every value that makes no sense, all at once.
    """

    ce: float | None = _option(None, _LOSS, "Weight of the cross-entropy of the text.")
    kl: float | None = _option(None, _LOSS, "Weight of the divergence from the teacher's predictions.")
    hidden: float | None = _option(
        None, _LOSS, "Weight of the relative distance from the teacher's hidden states."
    )
    temperature: float = _option(1.0, _LOSS, "Of both predictions in the divergence.")
    top_k: int = _option(
        0, _LOSS, "Keep so many of the teacher's tokens and one bucket for the rest; 0 for all."
    )

    train: str = _option(
        "all", _WHAT, "all, attention (its projections alone), or lora (merged before saving)."
    )
    lora_rank: int = _option(16, _WHAT, "Rank of each LoRA update.")
    lora_alpha: float = _option(32.0, _WHAT, "Updates are scaled by this / rank.")
    lora_dropout: float = _option(0.0, _WHAT, "Before each LoRA update.")
    lora_targets: str = _option("all", _WHAT, "all linear layers of the blocks, or those of attention.")

    learning_rate: float = _option(1e-4, _STEPS, "After the warm-up.")
    lr_scheduler_type: str = _option("cosine", _STEPS, "cosine, linear or constant; each after a warm-up.")
    warmup_steps: int = _option(10, _STEPS, "Steps up to the full learning rate.")
    max_steps: int = _option(0, _STEPS, "So many optimiser steps; 0 goes by --epochs.")
    epochs: float = _option(1.0, _STEPS, "Times through the text, where --max-steps is 0.")
    per_device_batch_size: int = _option(1, _STEPS, "Windows at a time, on each device.")
    gradient_accumulation_steps: int = _option(8, _STEPS, "Such batches a step.")
    weight_decay: float = _option(0.0, _STEPS, "AdamW's, on matrices.")
    adam_beta1: float = _option(0.9, _STEPS, "AdamW's.")
    adam_beta2: float = _option(0.99, _STEPS, "AdamW's.")
    adam_epsilon: float = _option(1e-8, _STEPS, "AdamW's.")
    max_grad_norm: float = _option(1.0, _STEPS, "Clip the gradient to this norm; 0 does not.")
    gradient_checkpointing: bool = _option(
        False, _STEPS, "Recompute activations: less memory, a third slower."
    )
    dtype: str = _option("float32", _STEPS, "float32, or bf16: autocast over weights kept in float32.")
    seed: int = _option(0, _STEPS, "Of everything random.")

    window: int = _option(512, _DATA, "Tokens a window.")
    tokens: int = _option(0, _DATA, "At most so many tokens of the text; 0 for all.")
    held_out: int = _option(
        0, _DATA, "Windows to evaluate on, not trained on; 0 for a sixteenth, at most 16."
    )

    eval_steps: int = _option(0, _WATCH, "Evaluate every so many steps; 0 for a tenth of them.")
    save_steps: int = _option(
        0, _WATCH, "Save what a resumed run needs every so many steps; 0: when evaluating."
    )
    patience: int = _option(0, _WATCH, "Stop after so many evaluations without a new best; 0 never does.")
    output_dtype: str = _option("same", _WATCH, "Of the new checkpoint: same, float32, bfloat16 or float16.")

    def __post_init__(self) -> None:
        problems = [*self._not_known(), *self._out_of_range()]
        if problems:
            raise UsageError("; ".join(problems))

    def _not_known(self) -> list[str]:
        names = {
            "train": TRAINED,
            "lr_scheduler_type": SCHEDULES,
            "dtype": PRECISIONS,
            "output_dtype": OUTPUT_DTYPES,
            "lora_targets": ("all", "attention"),
        }
        return [
            f"{flag(name)} {getattr(self, name)!r} is not one of {', '.join(known)}"
            for name, known in names.items()
            if getattr(self, name) not in known
        ]

    def _out_of_range(self) -> list[str]:
        at_least = {
            "ce": 0, "kl": 0, "hidden": 0, "top_k": 0, "lora_rank": 1, "warmup_steps": 0, "max_steps": 0,
            "per_device_batch_size": 1, "gradient_accumulation_steps": 1, "weight_decay": 0, "max_grad_norm": 0,
            "window": 2, "tokens": 0, "held_out": 0, "eval_steps": 0, "save_steps": 0, "patience": 0,
            "adam_beta1": 0, "adam_beta2": 0, "lora_dropout": 0,
        }  # fmt: skip
        above_zero = ("temperature", "lora_alpha", "learning_rate", "epochs", "adam_epsilon")
        below_one = ("adam_beta1", "adam_beta2", "lora_dropout")
        bounds = [(name, low, lambda v, low=low: v >= low, "at least") for name, low in at_least.items()]
        bounds += [(name, 0, lambda v: v > 0, "above") for name in above_zero]
        bounds += [(name, 1, lambda v: v < 1, "below") for name in below_one]
        found: list[str] = []
        for name, bound, holds, word in bounds:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                found.append(f"{flag(name)} is {value}, expected {word} {bound}")
        return found

    def weights(self, has_teacher: bool) -> LossWeights:
        """The weights of the losses, defaults filled in.

        Raises:
            UsageError: a loss needs a teacher and there is none, or nothing has a weight.
        """
        if (self.ce, self.kl, self.hidden) == (None, None, None):
            return LossWeights(0.0, 1.0, 0.0) if has_teacher else LossWeights(1.0, 0.0, 0.0)
        weights = LossWeights(self.ce or 0.0, self.kl or 0.0, self.hidden or 0.0)
        if not has_teacher and (weights.kl or weights.hidden):
            raise UsageError("--kl and --hidden compare with a teacher; give one with --teacher")
        if not (weights.ce or weights.kl or weights.hidden):
            raise UsageError("all losses have weight 0; give --ce, --kl or --hidden one above it")
        return weights

    def steps(self, examples: int, per_step: int) -> int:
        """Optimiser steps, for so many examples and so many a step."""
        return self.max_steps or max(1, math.ceil(self.epochs * examples / per_step))


def flag(name: str) -> str:
    """A field as the command line spells it."""
    return "--" + name.replace("_", "-")
