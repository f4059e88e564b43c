"""Options of uptraining, named as in the Hugging Face Trainer where it has them. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gqakit.data.options import DATA, TextOptions
from gqakit.models.run_options import PRECISIONS, RUN, DeviceOptions
from gqakit.options import Options, option

TRAINED = ("all", "attention", "lora")
SCHEDULES = ("cosine", "linear", "constant")
TRACKERS = ("tensorboard", "wandb", "trackio")

LOSS = "Losses (by default divergence from the teacher; without a teacher cross-entropy)"
WHAT = "What is trained"
STEPS = "Optimisation"
WATCH = "Evaluation and saving"
OUTPUT = "Output"


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts."""

    ce: float
    kl: float
    hidden: float


@dataclass(frozen=True)
class TrainOptions(Options):
    """How anything is trained: steps, learning rate, what is evaluated and saved when."""

    learning_rate: float = option(1e-4, "After the warm-up.", panel=STEPS, above=0)
    lr_scheduler_type: str = option("cosine", "After the warm-up.", panel=STEPS, choices=SCHEDULES)
    warmup_steps: int = option(10, "Steps up to the full learning rate.", panel=STEPS, at_least=0)
    max_steps: int = option(0, "Optimiser steps; 0 goes by the number of epochs.", panel=STEPS, at_least=0)
    num_train_epochs: float = option(
        1.0, "Times through the data, without a number of steps.", panel=STEPS, above=0
    )
    per_device_train_batch_size: int = option(
        1, "Examples at a time, on each device.", panel=STEPS, at_least=1
    )
    gradient_accumulation_steps: int = option(8, "Such batches per step.", panel=STEPS, at_least=1)
    weight_decay: float = option(
        0.0, "AdamW's, on all weights but norms and biases.", panel=STEPS, at_least=0
    )
    adam_beta1: float = option(0.9, "AdamW's.", panel=STEPS, at_least=0, below=1)
    adam_beta2: float = option(0.99, "AdamW's.", panel=STEPS, at_least=0, below=1)
    adam_epsilon: float = option(1e-8, "AdamW's.", panel=STEPS, above=0)
    max_grad_norm: float = option(1.0, "Clip the gradient to this norm; 0 does not.", panel=STEPS, at_least=0)
    gradient_checkpointing: bool = option(
        False, "Recompute activations: less memory, a third slower.", panel=STEPS
    )
    dtype: str = option(
        "float32", "float32, or bfloat16: autocast over weights kept in float32.", panel=STEPS,
        choices=tuple(name for name, full in PRECISIONS.items() if full != "float16"),
    )  # fmt: skip
    seed: int = option(0, "Of everything random.", panel=STEPS, at_least=0)

    eval_steps: int = option(0, "Steps between evaluations; 0 for a tenth of all.", panel=WATCH, at_least=0)
    save_steps: int = option(
        0, "Steps between saves of what a resumed run needs; 0: when evaluating.", panel=WATCH, at_least=0
    )
    early_stopping_patience: int = option(
        0, "Stop after this number of evaluations without a new best; 0 never does.", panel=WATCH, at_least=0
    )
    report_to: tuple[str, ...] | None = option(
        None, "Also log to tensorboard, wandb or trackio; may be repeated.", panel=WATCH, many=True
    )

    def problems(self) -> Iterator[str]:
        """Trackers that are not known."""
        yield from super().problems()
        for name in self.report_to or ():
            if name not in TRACKERS:
                yield f"`report_to` is {name!r}, expected one of {', '.join(TRACKERS)}"

    @property
    def precision(self) -> str:
        """torch's name of the precision."""
        return PRECISIONS[self.dtype]

    def per_step(self, processes: int) -> int:
        """Examples per optimiser step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * processes


@dataclass(frozen=True)
class StepSchedule:
    """The numbers of steps that a run goes by, all of them above zero."""

    max_steps: int
    eval_steps: int
    save_steps: int

    @classmethod
    def of(cls, options: TrainOptions, examples: int, processes: int = 1) -> StepSchedule:
        """What the options come to for a number of training examples."""
        steps = options.max_steps or math.ceil(
            options.num_train_epochs * examples / options.per_step(processes)
        )
        every = options.eval_steps or max(1, steps // 10)
        return cls(max(1, steps), every, options.save_steps or every)


@dataclass(frozen=True)
class UptrainOptions(TrainOptions, TextOptions, DeviceOptions):
    """Everything that `uptrain` takes: with the model and the text it determines the result."""

    teacher: str | None = option(
        None, "The model to learn from, usually the one before conversion; none learns from the text alone.",
        panel=LOSS,
    )  # fmt: skip
    ce: float | None = option(None, "Weight of the cross-entropy of the text.", panel=LOSS, at_least=0)
    kl: float | None = option(
        None, "Weight of the divergence from the teacher's predictions.", panel=LOSS, at_least=0
    )
    hidden: float | None = option(
        None, "Weight of the relative distance from the teacher's hidden states.", panel=LOSS, at_least=0
    )
    temperature: float = option(1.0, "Of both predictions in the divergence.", panel=LOSS, above=0)
    top_k: int = option(
        0, "Tokens of the teacher to keep, with one bucket for the rest; 0 keeps all.", panel=LOSS, at_least=0
    )

    train: str = option(
        "all", "All weights, attention's projections alone, or lora (merged before saving).", panel=WHAT,
        choices=TRAINED,
    )  # fmt: skip
    kv_cache: str | None = option(
        None,
        "Round keys and values in the loop as a cache of these types does, such as q8_0,q4_0.",
        panel=WHAT,
    )
    lora_rank: int = option(16, "Rank of each LoRA update.", panel=WHAT, at_least=1)
    lora_alpha: float = option(32.0, "Updates are scaled by this / rank.", panel=WHAT, above=0)
    lora_dropout: float = option(0.0, "Before each LoRA update.", panel=WHAT, at_least=0, below=1)
    lora_targets: str = option(
        "all",
        "All linear layers of the blocks, or those of attention.",
        panel=WHAT,
        choices=("all", "attention"),
    )

    window: int = option(512, "Tokens per window.", panel=DATA, at_least=2)
    tokens: int = option(0, "Most tokens of the text to take; 0 for all.", panel=DATA, at_least=0)
    held_out: int = option(
        0, "Windows to evaluate on, not trained on; 0 for a sixteenth, at most 16.", panel=DATA, at_least=0
    )

    slower: int = option(
        2, "Where no step does better than the start, begin again from it with a third of the rate; at most this "
        "number of times.",
        panel=STEPS, at_least=0,
    )  # fmt: skip

    restart: bool = option(
        False, "Start from the beginning, or continue an interrupted run (the default).", panel=RUN,
        flags=("--restart/--resume",),
    )  # fmt: skip
    output_dtype: str = option(
        "same", "Precision of the new checkpoint.", panel=OUTPUT, choices=("same", *PRECISIONS)
    )
    overwrite: bool = option(False, "Replace a checkpoint in the output directory.", panel=OUTPUT)

    def problems(self) -> Iterator[str]:
        """Losses that cannot be had."""
        yield from super().problems()
        if self.teacher is None and (self.kl or self.hidden):
            yield "`kl` and `hidden` compare with a teacher; give one as `teacher`"
        given = [weight for weight in (self.ce, self.kl, self.hidden) if weight is not None]
        if given and not any(given):
            yield "all losses have weight 0; give `ce`, `kl` or `hidden` one above it"

    @property
    def weights(self) -> LossWeights:
        """The weights of the losses, defaults filled in."""
        if (self.ce, self.kl, self.hidden) == (None, None, None):
            return LossWeights(1.0, 0.0, 0.0) if self.teacher is None else LossWeights(0.0, 1.0, 0.0)
        return LossWeights(self.ce or 0.0, self.kl or 0.0, self.hidden or 0.0)

    def rate(self, attempt: int) -> float:
        """The learning rate after beginning again that number of times."""
        return self.learning_rate / 3**attempt

    @property
    def output_precision(self) -> str | None:
        """torch's name of the new checkpoint's precision; None for the one that it has."""
        return None if self.output_dtype == "same" else PRECISIONS[self.output_dtype]
