"""The tasks of an image classifier: agree with a teacher's features, or tell classes apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gqakit.data.labelled import LabelledImages
from gqakit.recovery.distil.losses import cross_entropy, hidden_distance
from gqakit.recovery.distil.task import Batch, Losses


@dataclass(frozen=True)
class ImageTask:
    """Images, some of them held out.

    Attributes:
        train, held_out: with their classes.
        transform: pixels `[n, h, w, 3]` to the model's input.
    """

    train: LabelledImages
    held_out: LabelledImages
    transform: Callable[[np.ndarray], Tensor]

    @property
    def sizes(self) -> tuple[int, int]:
        """Images of each kind."""
        return len(self.train), len(self.held_out)

    def batch(self, indices: Sequence[int], *, held_out: bool) -> Batch:
        """Those images and their classes."""
        chosen = (self.held_out if held_out else self.train).take(indices)
        return {
            "pixel_values": self.transform(chosen.images.pixels),
            "labels": torch.from_numpy(chosen.labels),
        }

    def items(self, batch: Batch) -> int:
        """Images."""
        return len(batch["labels"])


@dataclass(frozen=True)
class Features(ImageTask):
    """Features as the teacher has them: no labels, no classifier.

    The loss of an image is the mean over its positions of `‖s - t‖² / ‖t‖²`, s and t what student and teacher
    put out last, after their final normalisation.
    """

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, *, every: bool) -> Losses:
        """The part is `features`."""
        assert teacher is not None
        with torch.no_grad():
            theirs = _features(teacher, batch)
        distance = hidden_distance((_features(student, batch),), (theirs,)) / theirs.shape[1]
        return Losses(distance, {"features": distance.detach()})

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """The distance."""
        return dict(means)


@dataclass(frozen=True)
class Classes(ImageTask):
    """Cross-entropy of the classes."""

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, *, every: bool) -> Losses:
        """The part is `correct`, images whose most likely class is theirs."""
        logits = student(pixel_values=batch["pixel_values"]).logits
        correct = (logits.argmax(-1) == batch["labels"]).sum()
        return Losses(cross_entropy(logits, batch["labels"]), {"correct": correct})

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """The share that is correct."""
        return {"accuracy": means["correct"]}


def _features(model: Any, batch: Batch) -> Tensor:
    return model.base_model(pixel_values=batch["pixel_values"]).last_hidden_state
