"""Whisper tiny.en (6 heads per layer, in the decoder and between encoder and decoder): a subject for experiments.

Only those layers are converted, so the encoder runs once for each recording. Attention is distilled from the source on
what the source hears in sentences that `spoken.py` made, or in eight short recordings, which are few. It is scored by the
loss of the transcripts of five sentences that a person reads. A seed is an order of the recordings, and what a search
starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from common import measurement
from gqakit.calibration.calibrate import calibrate
from gqakit.calibration.store import StatisticsFile
from gqakit.data.samples import Speech, read_speech
from gqakit.data.speech import opening, speech_batches
from gqakit.models.load import load
from gqakit.models.source import Source
from gqakit.planning.options import LossOptions
from gqakit.planning.planner import Measure
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.task import Batch, Losses
from gqakit.recovery.distil.trainable import prepare_student
from real_models import WEIGHED_CLIPS, other_recordings, sentence_batches, transcripts
from zoo import WHISPER_TINY, fetch


class Decoder(nn.Module):
    """A speech model behind its encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, encoded: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Logits, `[1, T, V]`."""
        heard = BaseModelOutput(last_hidden_state=encoded)  # pyright: ignore[reportArgumentType]
        return self.model(encoder_outputs=heard, decoder_input_ids=decoder_input_ids, use_cache=False).logits


@dataclass(frozen=True)
class SpeechTask:
    """Recordings one at a time: the encoder's output, what the decoder reads, and the source's logits there.

    Attributes:
        train, held_out: batches of `encoded`, `decoder_input_ids`, `logits`.
        opening: number of tokens that begin every transcript; what comes after them is predicted.
    """

    train: Sequence[Batch]
    held_out: Sequence[Batch]
    opening: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Recordings of each kind."""
        return len(self.train), len(self.held_out)

    def batch(self, indices: Sequence[int], *, held_out: bool) -> Batch:
        """One of them."""
        (index,) = indices
        return (self.held_out if held_out else self.train)[index]

    def items(self, batch: Batch) -> int:
        """Predicted tokens."""
        return batch["decoder_input_ids"].shape[1] - self.opening

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, *, every: bool) -> Losses:
        """Divergence from the source; the transcript's cross-entropy beside it."""
        ids = batch["decoder_input_ids"]
        where = slice(self.opening - 1, ids.shape[1] - 1)
        logp = student(batch["encoded"], ids)[0, where].log_softmax(-1)
        wanted = batch["logits"][0, where].log_softmax(-1)
        total = functional.kl_div(logp, wanted, reduction="sum", log_target=True)
        ce = functional.nll_loss(logp.detach(), ids[0, self.opening :], reduction="sum")
        return Losses(total, {"loss per token": ce, "kl": total.detach()})

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """As they are."""
        return dict(means)


class SpokenSentences:
    """Whisper tiny.en on the recordings of the Debian package pocketsphinx-testdata.

    Args:
        speech: the package's `test/data`.
        spoken: directory of recordings to calibrate and train on; None for the package's own that are not scored.
        work: scratch directory.
    """

    name, score, higher = "Whisper tiny.en, read sentences", "loss per token", False

    def __init__(self, speech: Path, spoken: Path | None, work: Path) -> None:
        self.speech, self.spoken, self.work = speech, spoken, work
        self.options = UptrainOptions(
            train="attention",
            learning_rate=1e-4,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a table should say."""
        return {
            "train recordings": len(self._recordings.clips), "test recordings": len(transcripts(self.speech)),
            "recordings a step": self.options.gradient_accumulation_steps,
            "learning rate": self.options.learning_rate, "trained": "attention of decoder and cross",
        }  # fmt: skip

    @cached_property
    def path(self) -> Path:
        """The model."""
        return fetch(WHISPER_TINY)

    @cached_property
    def _recordings(self) -> Speech:
        """To calibrate and to train on."""
        return read_speech([self.spoken]) if self.spoken is not None else other_recordings(self.speech)

    @cached_property
    def _task(self) -> SpeechTask:
        source = Source.open(self.path).checkpoint
        running: Any = load(self.path, dtype=torch.float32)

        def heard(batch: Mapping[str, Any]) -> Batch:
            with torch.no_grad():
                encoded = running.get_encoder()(batch["input_features"]).last_hidden_state
                ids = batch["decoder_input_ids"]
                return {
                    "encoded": encoded,
                    "decoder_input_ids": ids,
                    "logits": Decoder(running)(encoded, ids),
                }

        train = [heard(batch) for batch in speech_batches(source, self._recordings)]
        test = [heard(batch) for batch in sentence_batches(source, self.speech)]
        return SpeechTask(train, test, len(opening(source)))

    @property
    def source(self) -> Path:
        """As it comes."""
        return self.path

    def statistics(self) -> StatisticsFile:
        """On the recordings to train on."""
        path = self.work / "statistics.safetensors"
        if not path.is_file():
            calibrate(self.path, path, audio=self._recordings, progress=False)
        return StatisticsFile.open(path)

    def measure(self, merge: str) -> Measure:
        """On the recordings to train on."""
        weighed = Speech(self._recordings.name, self._recordings.clips[:WEIGHED_CLIPS])
        losses = LossOptions(losses=self.work / f"losses-{merge}.jsonl")
        source, statistics = Source.open(self.path), self.statistics()
        return measurement(source, statistics, merge, weighed, losses, start_over=True)

    def student(self, path: Path) -> nn.Module:
        """A conversion with its converted attention to train."""
        spec = Source.open(path).spec
        return Decoder(prepare_student(load(path, dtype=torch.float32), spec, self.options))

    def teacher(self) -> None:
        """None: what the source says is kept with the recordings."""

    def task(self, seed: int) -> SpeechTask:
        """The same recordings for all seeds."""
        return self._task
