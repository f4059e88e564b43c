"""Options of `vision-train`, and the methods that it knows. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gqakit.models.run_options import RUN, DeviceOptions
from gqakit.options import option
from gqakit.recovery.distil.options import OUTPUT, SCHEDULES, STEPS, WATCH, TrainOptions

METHODS = {
    "gqa": "consecutive equal groups, means of their heads",
    "kdgqa": "gqa, and every batch shares query heads out again, by the norms of its keys",
    "dgqa-ema": "gqa, and every window shares query heads out again, by a moving average of the norms",
    "dgqa-diff": "gqa, and every window shares query heads out again, by how far that average moved",
    "pgqa": "gqa, with noise on what attention puts out",
    "fold": "groups and heads as `convert` makes them, fitted to the images",
}
KEY_DRIVEN = ("kdgqa", "dgqa-ema", "dgqa-diff", "pgqa")
UPTRAIN, FINETUNE = "uptrain", "finetune"

HEADS = "Heads"
DATA = "Data"


@dataclass(frozen=True)
class VisionOptions(DeviceOptions):
    """Everything that `vision-train` takes: with the model and the images it determines the result."""

    images: Any = option(
        None,
        "An .npz with images and labels, or a folder with a folder of images for each class.",
        panel=DATA,
    )
    test_images: Any = option(
        None, "The same, to evaluate on. Default: some of the images to train on.", panel=DATA
    )
    image_size: int = option(0, "Height and width in pixels; 0 for the model's own.", panel=DATA, at_least=0)
    samples: int = option(0, "Most images to train on; 0 for all.", panel=DATA, at_least=0)
    held_out: int = option(0, "Images to evaluate on, not trained on; 0 for a fifth.", panel=DATA, at_least=0)

    method: str = option("gqa", "How query heads share KV heads.", panel=HEADS, choices=tuple(METHODS))
    kv_heads: int = option(
        0, "KV heads per layer; 0 for half of them. Of a conversion: as it has.", panel=HEADS, at_least=0
    )
    window: int = option(300, "dgqa: steps between two allocations.", panel=HEADS, at_least=1)
    decay: float = option(
        0.99, "kdgqa, dgqa: of the moving average of norms, per step.", panel=HEADS, at_least=0, below=1
    )
    as_published: bool = option(
        False, "Key-driven methods as the paper's published code has them, to compare.", panel=HEADS
    )
    teacher: str | None = option(
        None, "The model that MODEL was made of, where that is a conversion.", panel=HEADS
    )

    uptrain_epochs: float = option(
        1.0,
        "Times through the images towards the source's features; 0 leaves it out.",
        panel=STEPS,
        at_least=0,
    )
    uptrain_steps: int = option(0, "Steps of that, in place of epochs.", panel=STEPS, at_least=0)
    num_train_epochs: float = option(
        5.0, "Then times through the images towards their classes.", panel=STEPS, above=0
    )
    max_steps: int = option(0, "Steps of that, in place of epochs.", panel=STEPS, at_least=0)
    batch_size: int = option(32, "Images per step.", panel=STEPS, at_least=1)
    uptrain_learning_rate: float = option(1e-4, "While uptraining, after the warm-up.", panel=STEPS, above=0)
    learning_rate: float = option(2e-5, "While fine-tuning, after the warm-up.", panel=STEPS, above=0)
    lr_scheduler_type: str = option("cosine", "After the warm-up.", panel=STEPS, choices=SCHEDULES)
    warmup_steps: int = option(
        10, "Steps up to the full learning rate, in each phase.", panel=STEPS, at_least=0
    )
    weight_decay: float = option(
        0.01, "AdamW's, on all weights but norms and biases.", panel=STEPS, at_least=0
    )
    max_grad_norm: float = option(1.0, "Clip the gradient to this norm; 0 does not.", panel=STEPS, at_least=0)
    seed: int = option(0, "Of everything random.", panel=STEPS, at_least=0)

    eval_steps: int = option(
        0, "Steps between evaluations; 0 at the end of each phase.", panel=WATCH, at_least=0
    )
    save_steps: int = option(
        0, "Steps between saves of what a resumed run needs; 0 for a tenth of them.", panel=WATCH, at_least=0
    )
    restart: bool = option(
        False, "Start from the beginning, or continue an interrupted run (the default).", panel=RUN,
        flags=("--restart/--resume",),
    )  # fmt: skip
    overwrite: bool = option(False, "Replace a checkpoint in the output directory.", panel=OUTPUT)

    def problems(self) -> Iterator[str]:
        """No images; the published version of what nobody published."""
        yield from super().problems()
        if self.images is None:
            yield "`images` is missing: give an .npz or a folder of images with classes"
        if self.as_published and self.method not in KEY_DRIVEN:
            yield f"`as_published` is for {', '.join(KEY_DRIVEN)}, not for {self.method}"

    @property
    def uptrains(self) -> bool:
        """Whether there is a first phase."""
        return self.uptrain_steps > 0 or self.uptrain_epochs > 0

    def phase(self, name: str, examples: int) -> TrainOptions:
        """How "uptrain" or "finetune" is trained, with a number of images to train on."""
        first = name == UPTRAIN
        steps = self.uptrain_steps if first else self.max_steps
        epochs = self.uptrain_epochs if first else self.num_train_epochs
        steps = steps or max(1, math.ceil(epochs * examples / self.batch_size))
        return TrainOptions(
            max_steps=steps,
            learning_rate=self.uptrain_learning_rate if first else self.learning_rate,
            lr_scheduler_type=self.lr_scheduler_type,
            warmup_steps=self.warmup_steps,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=1,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            seed=self.seed,
            eval_steps=self.eval_steps or steps,
            save_steps=self.save_steps or max(1, steps // 10),
        )
