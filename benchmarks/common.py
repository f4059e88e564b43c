"""What the benchmarks share: the text, plans and their losses, conversions in memory, paired timings, plain tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import gqakit
from gqakit.calibration.store import StatisticsFile
from gqakit.core.apply import apply_grouping, in_source_shape
from gqakit.core.merging import RULES
from gqakit.data.batches import Content
from gqakit.data.options import WINDOW
from gqakit.data.text import Text, read_text
from gqakit.models.layers import parameters_of_layer, tensors_of_layer
from gqakit.models.source import Source
from gqakit.planning.layer_features import LayerFeatures, LayerReader
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.options import BudgetOptions, LossOptions, PlanOptions
from gqakit.planning.plan import Plan
from gqakit.planning.planner import Measure, Planned, make_plan
from gqakit.planning.request import Request
from gqakit.progress import silent
from zoo import SMOLLM2, fetch

SIBLING = Path(__file__).resolve().parents[2] / "shared" / "data" / "wikitext-2"
STAND_INS = {"valid": "calibration", "test": "evaluation"}
"""The texts that come with gqakit, by the split of WikiText-2 that they stand in for."""


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks on text take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--wikitext",
        type=Path,
        default=SIBLING,
        help="directory with valid.txt and test.txt of WikiText-2 (raw text, <unk> version)",
    )
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out"), help="scratch directory")
    return parser


def real_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that name images and recordings for real models that take these."""
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-9000.npz"))
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--speech", type=Path, default=Path("/usr/share/pocketsphinx/test/data"))
    parser.add_argument("--spoken", type=Path, help="recordings to calibrate Whisper on, from spoken.py")


def calibrated(model: Path, statistics: Path, **how: Any) -> StatisticsFile:
    """The statistics in a file, made where it is not there yet; `how` are keywords of `gqakit.calibrate`."""
    if not statistics.is_file():
        gqakit.calibrate(model, statistics, progress=False, **how)
    return StatisticsFile.open(statistics)


def environment() -> str:
    """Versions and processors, for the record."""
    import transformers

    return (
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{os.cpu_count()} processors, {torch.get_num_threads()} threads, float32"
    )


def text_of(wikitext: Path, split: str) -> Text:
    """A split of WikiText-2, valid or test, or where it is not there a text that comes with gqakit."""
    path = wikitext / f"{split}.txt"
    return read_text([path if path.is_file() else STAND_INS[split]])


def measurement(
    source: Source,
    statistics: StatisticsFile | None,
    merge: str,
    content: Content,
    losses: LossOptions,
    *,
    window: int = WINDOW,
    start_over: bool = False,
) -> Measurement:
    """What measures the losses of single layers.

    Args:
        source, statistics, merge: the model, its calibration and the merge rule.
        content: what the model is run on. window: tokens per window of a text.
        losses: how many tokens, and the file that keeps what was measured.
        start_over: begin that file over where it is about something else, in place of refusing it.
    """
    made = Measurement.on(source, statistics, merge, content, window, losses, silent)
    return replace(made, replace=start_over)


def plan_within(
    source: Source,
    budget: BudgetOptions,
    options: PlanOptions,
    statistics: StatisticsFile | None,
    measure: Callable[[], Measure] | None = None,
) -> Planned:
    """A plan and what it was picked from.

    Args:
        source, budget, options, statistics: what decides.
        measure: gives what measures losses, where the allocation weighs measured ones; None for no such allocation.
    """
    request = Request.check(source.spec, budget, options, measurable=measure is not None)
    made = measure() if measure is not None and request.loss == "measured" else None
    return make_plan(source, request, statistics, measure=made)


def all_layers(source: Source, statistics: StatisticsFile | None) -> list[LayerFeatures]:
    """Every layer of a small model, in memory."""
    read = LayerReader(source, statistics)
    return [read(layer) for layer in range(source.spec.num_layers)]


def convert_in_memory(model: Any, layers: Sequence[LayerFeatures], plan: Plan) -> None:
    """Overwrite a source's attention by a plan's, KV heads repeated for all that share them: it computes the same."""
    rules = RULES[plan.merging.key], RULES[plan.merging.value]
    with torch.inference_mode():
        for layer, (features, grouping) in enumerate(zip(layers, plan.groupings, strict=True)):
            spec = features.spec
            fixed = spec.fixed_queries
            merged = apply_grouping(
                features.weights, grouping, features.key, features.value, *rules, fixed_queries=fixed
            )
            parameters = parameters_of_layer(spec, model, layer)
            same = in_source_shape(merged, grouping, fixed_queries=fixed)
            for name, tensor in tensors_of_layer(spec, layer, same).items():
                parameters[name].copy_(tensor)


def third_of_smollm2(work: Path, form: str) -> Path:
    """SmolLM2 with one of 3 KV heads per layer, uniform or grouped, made once; quality does not matter where it is used."""
    path = work / f"third-{form}"
    if not (path / "config.json").is_file():
        gqakit.convert(
            fetch(SMOLLM2), path, kv_heads=1, method="neighbour", merge="mean", allocation="uniform", format=form,
            evaluate=False,
        )  # fmt: skip
    return path


def paired_times(work: Sequence[Callable[[], object]], rounds: int) -> tuple[list[float], str]:
    """Two pieces of work in turns, each once to warm up and then once a round, in turn first and second.

    Returns the median seconds of each on this thread's processor, and the median over the rounds of the second's time over
    the first's, with the quartiles in brackets.
    """
    times: list[list[float]] = [[], []]
    for each in work:
        each()
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 else (1, 0):
            start = time.thread_time()
            work[index]()
            times[index].append(time.thread_time() - start)
    ratios = [ours / plain for plain, ours in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return [statistics.median(each) for each in times], f"{middle:.3f} ({low:.3f}–{high:.3f})"


class Kept(dict[str, Any]):
    """What was measured, by name, in a file of JSON: an interrupted run finds it there, and several runs may share it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._read()

    def __setitem__(self, name: str, found: Any) -> None:
        with FileLock(f"{self._file}.lock"):
            self._read()
            super().__setitem__(name, found)
            self._file.write_text(json.dumps(self, indent=1))

    def _read(self) -> None:
        if self._file.is_file():
            self.update(json.loads(self._file.read_text()))


class Table:
    """A Markdown table that prints each row as soon as it is measured."""

    def __init__(self, title: str, *header: str) -> None:
        print(f"\n## {title}\n\n| " + " | ".join(header) + " |")
        print("|" + "---|" * len(header), flush=True)

    def row(self, *cells: str) -> None:
        """One line."""
        print("| " + " | ".join(cells) + " |", flush=True)
