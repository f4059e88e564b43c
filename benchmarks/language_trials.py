"""SmolLM2-135M-Instruct (3 KV heads per layer) on WikiText-2: a subject for experiments.

Conversions are distilled from the source on windows of valid, attention alone, and scored on windows of test by
cross-entropy. A seed is an order of the training windows, and what a search starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gqakit.calibration.store import StatisticsFile
from gqakit.models.load import load
from gqakit.models.source import Source
from gqakit.planning.planner import Measure
from gqakit.recovery.distil.language import LanguageTask
from gqakit.recovery.distil.options import LossWeights, UptrainOptions
from gqakit.recovery.distil.trainable import prepare_student
from workbench import Remembering, Workbench


@dataclass(frozen=True)
class ScoredLanguageTask(LanguageTask):
    """A language task whose summary says the cross-entropy too."""

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Cross-entropy in nats, and the others."""
        return {"cross-entropy": means["ce"], **super().summary(means)}


class Language:
    """SmolLM2 on WikiText-2.

    Args:
        wikitext, work: directories.
        windows: to train on. test: to score on. window: tokens of each.
        measured: tokens of valid on which knapsack's losses are measured.
    """

    name, score, higher = "SmolLM2-135M, WikiText-2", "cross-entropy", False

    def __init__(
        self,
        wikitext: Path,
        work: Path,
        *,
        windows: int = 16,
        test: int = 8,
        window: int = 128,
        measured: int = 512,
    ) -> None:
        self.bench = Workbench.on_smollm2(wikitext, work)
        self.sizes, self.window, self.measured = (windows, test), window, measured
        self.options = UptrainOptions(
            train="attention",
            learning_rate=1e-3,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a table should say."""
        return {
            "train windows": self.sizes[0], "test windows": self.sizes[1], "window": self.window, "windows a step": 4,
            "learning rate": self.options.learning_rate, "trained": self.options.train,
            "tokens to measure losses on": self.measured,
        }  # fmt: skip

    @cached_property
    def _task(self) -> ScoredLanguageTask:
        train, test = (
            self.bench.windows(split, count, self.window)
            for split, count in zip(("valid", "test"), self.sizes, strict=True)
        )
        return ScoredLanguageTask(train, test, LossWeights(0.0, 1.0, 0.0))

    @cached_property
    def _teacher(self) -> nn.Module:
        return Remembering(load(self.bench.source.path, dtype=torch.float32))

    @property
    def source(self) -> Path:
        """As it comes."""
        return self.bench.source.path

    def statistics(self) -> StatisticsFile:
        """On valid."""
        return self.bench.statistics()

    def measure(self, merge: str) -> Measure:
        """On the beginning of valid."""
        return self.bench.measurement(merge, tokens=self.measured, start_over=True)

    def student(self, path: Path) -> nn.Module:
        """A conversion with its attention to train."""
        spec = Source.open(path).spec
        return prepare_student(load(path, dtype=torch.float32), spec, self.options)

    def teacher(self) -> nn.Module:
        """The source, run once for each window."""
        return self._teacher

    def task(self, seed: int) -> ScoredLanguageTask:
        """The same windows for all seeds."""
        return self._task
