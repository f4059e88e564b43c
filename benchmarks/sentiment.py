"""MiniLM-L6 (12 heads per layer, no grouping of its own) as a classifier of short movie reviews: a subject for experiments.

First a source is made: the encoder with a linear classifier on the mean of its tokens, the classifier begun as a ridge
regression on the pretrained embeddings, then both fine-tuned. That source is converted, and its conversion fine-tuned on
other reviews, which a seed draws. Embeddings stay as they are; there is no dropout.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from common import measurement
from gqakit.calibration.calibrate import calibrate
from gqakit.calibration.store import StatisticsFile
from gqakit.data.text import Text
from gqakit.models.load import load
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from gqakit.planning.options import LossOptions
from gqakit.planning.planner import Measure
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.task import Batch, Losses
from movies import Review, short_reviews
from real_models import ridge
from trials import train
from zoo import MINILM, fetch

RIDGE = 10.0
WINDOW = 96


class Classifier(nn.Module):
    """An encoder, the mean of its last hidden states over tokens, and one logit for `positive`."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 1)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[B, D]` of `[B, T]`."""
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B]`."""
        return self.head(self.embed(input_ids, attention_mask)).squeeze(-1)


@dataclass(frozen=True)
class SentimentTask:
    """Reviews to train on and reviews to score on, padded to the longest of a batch."""

    train: Sequence[Review]
    held_out: Sequence[Review]
    padding: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Reviews of each kind."""
        return len(self.train), len(self.held_out)

    def batch(self, indices: Sequence[int], *, held_out: bool) -> Batch:
        """Those reviews."""
        found = [(self.held_out if held_out else self.train)[index] for index in indices]
        ids = torch.full((len(found), max(len(review.ids) for review in found)), self.padding)
        mask = torch.zeros_like(ids)
        for row, review in enumerate(found):
            ids[row, : len(review.ids)] = torch.tensor(review.ids)
            mask[row, : len(review.ids)] = 1
        labels = torch.tensor([float(review.positive) for review in found])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def items(self, batch: Batch) -> int:
        """Reviews."""
        return len(batch["labels"])

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, *, every: bool) -> Losses:
        """Cross-entropy; how many are right beside it."""
        logits = student(batch["input_ids"], batch["attention_mask"])
        total = functional.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="sum")
        right = ((logits > 0) == (batch["labels"] > 0)).sum()
        return Losses(total, {"accuracy": right.detach()})

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Accuracy in percent."""
        return {"accuracy": 100 * means["accuracy"]}


class Sentiment:
    """MiniLM on movie reviews.

    Args:
        work: scratch directory.
        reviews: to fine-tune a conversion on. test: to score on, the same for all seeds.
        longest: tokens of the longest review that is used.
        source_reviews, source_epochs: of the source's fine-tuning before conversion, the same for all seeds.
    """

    name, score, higher = "MiniLM-L6, movie reviews", "accuracy", True

    def __init__(
        self,
        work: Path,
        *,
        reviews: int = 400,
        test: int = 500,
        longest: int = 96,
        source_reviews: int = 512,
        source_epochs: int = 2,
    ) -> None:
        self.work, self.reviews, self.test, self.longest = work, reviews, test, longest
        self.source_reviews, self.source_epochs = source_reviews, source_epochs
        self.options = UptrainOptions(
            learning_rate=1e-4,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=1,
            lr_scheduler_type="linear",
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a table should say."""
        return {
            "fine-tuning reviews": self.reviews, "test reviews": self.test, "longest review": self.longest,
            "reviews for the source": self.source_reviews, "epochs for the source": self.source_epochs,
            "reviews a step": self.options.per_device_train_batch_size, "learning rate": self.options.learning_rate,
        }  # fmt: skip

    @cached_property
    def path(self) -> Path:
        """The pretrained encoder."""
        return fetch(MINILM)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_tokenizer(Source.open(self.path).checkpoint)

    @cached_property
    def all_reviews(self) -> list[Review]:
        """Every short review."""
        return short_reviews(self.tokenizer, self.longest)

    def task(self, seed: int) -> SentimentTask:
        """Reviews that the seed draws."""
        return self._task(Random(seed).sample(self._parts[2], self.reviews))

    @cached_property
    def _parts(self) -> tuple[list[Review], list[Review], list[Review]]:
        """To score on, for the source, and the rest."""
        everything, here = short_reviews(self.tokenizer, self.longest), self.test + self.source_reviews
        return everything[: self.test], everything[self.test : here], everything[here:]

    def _task(self, train_on: list[Review]) -> SentimentTask:
        """Reviews to score on go by length, to save padding."""
        test = sorted(self._parts[0], key=lambda review: len(review.ids))
        return SentimentTask(train_on, test, self.tokenizer.pad_token_id)

    @property
    def source(self) -> Path:
        """The fine-tuned encoder; made on first use."""
        path = self.work / "source"
        if not path.is_dir():
            task = self._task(self._parts[1])
            student = self._classifier(self.path)
            _begin(student, task)
            train(student, None, task, self.options, self.source_epochs, self.work, "source")
            save_file({k: v.detach() for k, v in student.head.state_dict().items()}, self._head)
            partial = self.work / "source-partial"
            shutil.rmtree(partial, ignore_errors=True)
            encoder: Any = student.encoder
            encoder.save_pretrained(partial)
            for file in self.path.iterdir():
                if not (partial / file.name).exists():
                    shutil.copy(file, partial / file.name)
            partial.rename(path)
        return path

    def statistics(self) -> StatisticsFile:
        """Of the source on its training reviews."""
        path = self.work / "statistics.safetensors"
        if not path.is_file():
            calibrate(self.source, path, text=self._text, tokens=128 * WINDOW, window=WINDOW, progress=False)
        return StatisticsFile.open(path)

    def measure(self, merge: str) -> Measure:
        """On the source's training reviews."""
        losses = LossOptions(measure_tokens=16 * WINDOW, losses=self.work / f"losses-{merge}.jsonl")
        source, statistics = Source.open(self.source), self.statistics()
        return measurement(source, statistics, merge, self._text, losses, window=WINDOW, start_over=True)

    def student(self, path: Path) -> nn.Module:
        """The converted encoder under the source's classifier."""
        student = self._classifier(path)
        student.head.load_state_dict(load_file(self._head))
        return student

    def teacher(self) -> None:
        """None: it learns from labels."""

    @property
    def _head(self) -> Path:
        return self.work / "head.safetensors"

    @property
    def _text(self) -> Text:
        return Text("reviews of the source", "\n\n".join(review.text for review in self._parts[1]))

    def _classifier(self, path: Path) -> Classifier:
        encoder = load(path, dtype=torch.float32)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        encoder.requires_grad_(False)
        encoder.get_submodule("encoder").requires_grad_(True)
        return Classifier(encoder, encoder.config.hidden_size)


@torch.no_grad()
def _begin(student: Classifier, task: SentimentTask) -> None:
    """The classifier as a ridge regression on the labels, as -2 and 2."""
    batches = [
        task.batch(range(at, min(at + 32, task.sizes[0])), held_out=False)
        for at in range(0, task.sizes[0], 32)
    ]
    features = torch.cat([student.embed(batch["input_ids"], batch["attention_mask"]) for batch in batches])
    wanted = torch.cat([batch["labels"] for batch in batches]) * 4 - 2
    found = ridge(features, wanted[:, None], RIDGE).float().squeeze(1)
    student.head.weight.copy_(found[None, :-1])
    student.head.bias.copy_(found[-1:])
