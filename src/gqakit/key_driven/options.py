"""Everything one can choose about `vision-train`. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from gqakit.errors import UsageError
from gqakit.recovery.distil.options import SCHEDULES, UptrainOptions, flag

METHODS = {
    "gqa": "consecutive equal groups, means of their heads",
    "kdgqa": "gqa, and every batch shares query heads out anew, by the norms of its keys",
    "dgqa-ema": "gqa, and every window shares query heads out anew, by a moving average of the norms",
    "dgqa-diff": "gqa, and every window shares query heads out anew, by how far that average moved",
    "pgqa": "gqa, with noise on what attention puts out",
    "fold": "groups and heads as `convert` makes them, fitted to the images",
}
KEY_DRIVEN = ("kdgqa", "dgqa-ema", "dgqa-diff", "pgqa")

_HEADS = "Heads"
_STEPS = "Optimisation"
_DATA = "Data"
_WATCH = "Evaluation and saving"


def _option(default: Any, panel: str, help: str) -> Any:
    return field(default=default, metadata={"panel": panel, "help": help})


@dataclass(frozen=True)
class VisionOptions:
    """The options of a run; with the model and the images they determine its result.

    Raises:
        UsageError: naming every value that makes no sense, all at once.
    """

    method: str = _option("gqa", _HEADS, "gqa, kdgqa, dgqa-ema, dgqa-diff, pgqa or fold.")
    kv_heads: int = _option(0, _HEADS, "KV heads a layer; 0 for half of them. Of a conversion: as it has.")
    window: int = _option(300, _HEADS, "dgqa: steps between two allocations.")
    decay: float = _option(0.99, _HEADS, "kdgqa, dgqa: of the moving average of norms, a step.")
    as_published: bool = _option(
        False, _HEADS, "Key-driven methods as the paper's published code has them, to compare."
    )

    uptrain_epochs: float = _option(
        1.0, _STEPS, "Times through the images towards the source's features; 0 leaves it out."
    )
    uptrain_steps: int = _option(0, _STEPS, "So many steps of that instead.")
    epochs: float = _option(5.0, _STEPS, "Then times through the images towards their classes.")
    steps: int = _option(0, _STEPS, "So many steps of that instead.")
    batch_size: int = _option(32, _STEPS, "Images a step.")
    uptrain_learning_rate: float = _option(1e-4, _STEPS, "While uptraining, after the warm-up.")
    learning_rate: float = _option(2e-5, _STEPS, "While fine-tuning, after the warm-up.")
    lr_scheduler_type: str = _option("cosine", _STEPS, "cosine, linear or constant; each after a warm-up.")
    warmup_steps: int = _option(10, _STEPS, "Steps up to the full learning rate, in each phase.")
    weight_decay: float = _option(0.01, _STEPS, "AdamW's, on matrices.")
    max_grad_norm: float = _option(1.0, _STEPS, "Clip the gradient to this norm; 0 does not.")
    seed: int = _option(0, _STEPS, "Of everything random.")

    image_size: int = _option(0, _DATA, "Height and width in pixels; 0 for the model's own.")
    samples: int = _option(0, _DATA, "Train on at most so many images; 0 for all.")
    held_out: int = _option(0, _DATA, "Images to evaluate on, not trained on; 0 for a fifth.")

    eval_steps: int = _option(0, _WATCH, "Evaluate every so many steps; 0 at the end of each phase.")
    save_steps: int = _option(
        0, _WATCH, "Save what a resumed run needs every so many steps; 0 for a tenth of them."
    )

    def __post_init__(self) -> None:
        problems = [*self._not_known(), *self._out_of_range()]
        if self.as_published and self.method not in KEY_DRIVEN:
            problems.append(f"--as-published is for {', '.join(KEY_DRIVEN)}, not for {self.method}")
        if problems:
            raise UsageError("; ".join(problems))

    def _not_known(self) -> list[str]:
        names = {"method": tuple(METHODS), "lr_scheduler_type": SCHEDULES}
        return [
            f"{flag(name)} {getattr(self, name)!r} is not one of {', '.join(known)}"
            for name, known in names.items()
            if getattr(self, name) not in known
        ]

    def _out_of_range(self) -> list[str]:
        at_least = {
            "kv_heads": 0, "window": 1, "decay": 0, "uptrain_epochs": 0, "uptrain_steps": 0, "steps": 0, "batch_size": 1,
            "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0, "image_size": 0, "samples": 0, "held_out": 0,
            "eval_steps": 0, "save_steps": 0,
        }  # fmt: skip
        bounds = [(name, low, lambda v, low=low: v >= low, "at least") for name, low in at_least.items()]
        bounds += [(name, 0, lambda v: v > 0, "above") for name in ("epochs", "learning_rate")]
        bounds += [
            ("uptrain_learning_rate", 0, lambda v: v > 0, "above"),
            ("decay", 1, lambda v: v < 1, "below"),
        ]
        return [
            f"{flag(name)} is {value}, expected {word} {bound}"
            for name, bound, holds, word in bounds
            if not (math.isfinite(value := getattr(self, name)) and holds(value))
        ]

    @property
    def uptrains(self) -> bool:
        """Whether there is a first phase."""
        return self.uptrain_steps > 0 or self.uptrain_epochs > 0

    def phase(self, name: str, examples: int) -> UptrainOptions:
        """What the training loop is told for "uptrain" or "finetune", with so many images to train on."""
        first = name == "uptrain"
        epochs, steps = (self.uptrain_epochs, self.uptrain_steps) if first else (self.epochs, self.steps)
        steps = steps or max(1, math.ceil(epochs * examples / self.batch_size))
        return UptrainOptions(
            max_steps=steps,
            learning_rate=self.uptrain_learning_rate if first else self.learning_rate,
            lr_scheduler_type=self.lr_scheduler_type,
            warmup_steps=self.warmup_steps,
            per_device_batch_size=self.batch_size,
            gradient_accumulation_steps=1,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            seed=self.seed,
            eval_steps=self.eval_steps or steps,
            save_steps=self.save_steps or max(1, steps // 10),
        )
