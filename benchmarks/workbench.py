"""SmolLM2 and WikiText-2 made ready for experiments: calibration statistics, plans to measure, scores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from common import measurement, plan_within, text_of
from gqakit.calibration.calibrate import calibrate
from gqakit.calibration.store import StatisticsFile, save_statistics
from gqakit.conversion.convert import convert_checkpoint
from gqakit.core.statistics import LayerStatistics
from gqakit.data.text import read_text, token_windows
from gqakit.evaluation.language import LanguageScores, score_language
from gqakit.models.load import load
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.options import BudgetOptions, LossOptions, PlanOptions
from gqakit.planning.plan import Plan
from zoo import SMOLLM2, fetch


@dataclass(frozen=True)
class Workbench:
    """One source model, calibrated on the first 24 × 512 tokens of valid, scored on the first 8 × 512 of test."""

    source: Source
    wikitext: Path
    work: Path

    @classmethod
    def on_smollm2(cls, wikitext: Path, work: Path) -> Workbench:
        """The workbench of all WikiText figures."""
        work.mkdir(parents=True, exist_ok=True)
        return cls(Source.open(fetch(SMOLLM2)), wikitext, work)

    @property
    def spec(self) -> ModelSpec:
        """Of its attention."""
        return self.source.spec

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return load_tokenizer(self.source.checkpoint)

    @cached_property
    def reference(self) -> Any:
        """The source, running once for each window."""
        return Remembering(load(self.source.path, dtype=torch.float32))

    def windows(self, split: str, count: int, window: int) -> torch.Tensor:
        """The first windows of a split, or of a text that comes with gqakit."""
        path = self.wikitext / f"{split}.txt"
        text = read_text([path] if path.is_file() else [split])
        return token_windows(self.tokenizer, text, window=window, tokens=count * window)

    def statistics(self, text: str | None = None) -> StatisticsFile:
        """Calibrated on WikiText valid, or on a text that comes with gqakit; kept between runs."""
        path = self.work / f"statistics-{text or 'wikitext'}.safetensors"
        known = StatisticsFile.open(path).header.fingerprint if path.is_file() else ""
        if known != self.source.fingerprint_like(known):
            calibrate(
                self.source.path,
                path,
                text=[text or self.wikitext / "valid.txt"],
                tokens=24 * 512,
                progress=False,
            )
        return StatisticsFile.open(path)

    def changed_statistics(
        self, name: str, change: Callable[[LayerStatistics], LayerStatistics]
    ) -> StatisticsFile:
        """Those of WikiText with something changed in every layer."""
        original = self.statistics()
        layers = {index: change(original.layer(index)) for index in range(self.spec.num_layers)}
        return save_statistics(self.work / f"statistics-{name}.safetensors", original.header, layers)

    def measurement(self, merge: str, *, tokens: int = 1536, start_over: bool = False) -> Measurement:
        """Measures losses of layers on the beginning of valid; kept between runs. See `common.measurement`."""
        losses = LossOptions(measure_tokens=tokens, losses=self.work / f"losses-{merge}.jsonl")
        text = text_of(self.wikitext, "valid")
        return measurement(self.source, self.statistics(), merge, text, losses, start_over=start_over)

    def plan(self, kept: int, statistics: StatisticsFile | None, **options: Any) -> Plan:
        """A plan that keeps this number of KV heads in every layer."""
        return plan_within(self.source, BudgetOptions(kv_heads=kept), PlanOptions(**options), statistics).plan

    def score(
        self, plan: Plan, statistics: StatisticsFile | None, windows: Sequence[torch.Tensor]
    ) -> list[LanguageScores]:
        """Convert, load, score on each set of windows, throw away."""
        out = self.work / "candidate"
        shutil.rmtree(out, ignore_errors=True)
        convert_checkpoint(self.source, plan, statistics, out, "")
        model = load(out, dtype=torch.float32)
        scores = [score_language(model, each, self.reference) for each in windows]
        shutil.rmtree(out)
        return scores


class Remembering(torch.nn.Module):
    """A model that keeps its logits for every input that it was run on."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.known: dict[bytes, Any] = {}

    def forward(
        self, input_ids: torch.Tensor, use_cache: bool = False, output_hidden_states: bool = False
    ) -> Any:
        """The model's output; hidden states are not kept."""
        assert not output_hidden_states
        key = input_ids.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.model(input_ids=input_ids, use_cache=use_cache)
        return self.known[key]


def cross(keys: Plan, values: Plan) -> Plan:
    """The plan that groups keys as one plan does and values as another."""
    layers = tuple(
        k.model_copy(update={"value": v.value, "value_error": v.value_error})
        for k, v in zip(keys.layers, values.layers, strict=True)
    )
    return keys.model_copy(update={"format": "grouped", "layers": layers})


def without(*fields: str) -> Callable[[LayerStatistics], LayerStatistics]:
    """A change that forgets some of what calibration recorded."""
    return lambda statistics: replace(statistics, **dict.fromkeys(fields))
