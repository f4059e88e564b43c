"""Losses of layers, predicted from gradients against measured: ranks, sizes, time, and the plans that follow from them.

    python benchmarks/predicted_losses.py [--model minilm] [--spoken spoken --speech …/pocketsphinx/test/data] …

Three parts of the data, none of which overlap: statistics and gradients are taken on the first, losses are measured on the
second, and what plans lose is reported on the third. Text: WikiText-2 valid, its first and its last part, and test. Images:
parts of CIFAR-10. Speech: recordings that `spoken.py` made, and the five read sentences of Debian's pocketsphinx-testdata,
with what the model hears in them. Statistics and losses stay in the scratch directory; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from common import (
    Table,
    all_layers,
    arguments,
    calibrated,
    convert_in_memory,
    environment,
    real_data,
    text_of,
)
from gqakit.calibration.backward import collect_gradients
from gqakit.data.batches import Content, batches_of
from gqakit.data.samples import Speech, positions_of, read_speech
from gqakit.models.load import load, use_attention_interface
from gqakit.models.outputs import Output
from gqakit.models.source import Source
from gqakit.planning.candidates import EntryCandidates
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.file import Key
from gqakit.planning.layer_loss.measure import Measurement, Prober, what_is_measured
from gqakit.planning.layer_loss.predict import Prediction
from gqakit.planning.layer_loss.weigh import losses_for
from gqakit.planning.options import BudgetOptions, LossOptions, PlanOptions
from gqakit.planning.planner import make_plan
from gqakit.planning.request import Request
from gqakit.progress import silent
from real_models import images_of, remember_candidates
from zoo import DINOV2_SMALL, MINILM, SMOLLM2, WHISPER_BASE, PackagedModel, fetch

RATIOS = {"3/4": 3 / 4, "1/2": 1 / 2, "1/3": 1 / 3}
LATER = 400_000
"""Characters of WikiText-2 valid before the part that losses are measured on: more than any calibration here reads."""


@dataclass(frozen=True)
class Subject:
    """One model with the three parts of its data; `window`, `tokens` and `measured` are of text."""

    model: PackagedModel
    calibrate_on: Content
    measure_on: Content
    report_on: Content
    window: int = 512
    tokens: int = 12_288
    measured: int = 1536
    reported: int = 4096


def subjects(
    wikitext: Path, images: Path, size: int, speech: Path, spoken: Path | None
) -> dict[str, Callable[[], Subject]]:
    """By the names of `--model`; each reads its data when it is called."""

    def text(model: PackagedModel, window: int, measured: int, reported: int) -> Subject:
        valid = text_of(wikitext, "valid")
        later = replace(valid, content=valid.content[LATER:] or valid.content)
        test = text_of(wikitext, "test")
        return Subject(model, valid, later, test, window, measured=measured, reported=reported)

    def looking() -> Subject:
        calibrate_on, measure_on, report_on = (
            images_of(images, part, size) for part in ("calibrate", "weigh", "test")
        )
        return Subject(DINOV2_SMALL, calibrate_on, measure_on, report_on.part(slice(64)))

    def hearing() -> Subject:
        assert spoken is not None, "give --spoken, recordings from spoken.py"
        made = read_speech([spoken])
        parts = (
            Speech(f"{made.name}, first", made.clips[:16]),
            Speech(f"{made.name}, later", made.clips[16:24]),
        )
        return Subject(WHISPER_BASE, *parts, read_speech(sorted((speech / "librivox").glob("*.wav"))))

    return {
        "minilm": lambda: text(MINILM, 96, 768, 3840),
        "smollm2": lambda: text(SMOLLM2, 512, 512, 1024),
        "dinov2": looking,
        "whisper-base": hearing,
    }


class Bench:
    """A subject with its statistics, its candidates, and what these lose by either way."""

    def __init__(self, subject: Subject, work: Path) -> None:
        remember_candidates()
        self.subject, self.name = subject, subject.model.name
        self.source = Source.open(fetch(subject.model))
        path = work / f"statistics-gradients-{self.name}.safetensors"
        how = {"window": subject.window, "tokens": subject.tokens}
        self.statistics = calibrated(self.source.path, path, text=subject.calibrate_on, **how)
        self.prediction = Prediction(self.statistics, "fold")
        losses = LossOptions(measure_tokens=subject.measured, losses=work / f"losses-apart-{self.name}.jsonl")
        self.measurement = Measurement.on(
            self.source, self.statistics, "fold", subject.measure_on, subject.window, losses, silent
        )
        self.reader = LayerReader(self.source, self.statistics)
        options = PlanOptions(kv_maps="separate", allocation="knapsack", layer_loss="error", format="grouped")
        request = Request.check(self.source.spec, BudgetOptions(kv_ratio=0.5), options)
        self.candidates = make_plan(self.source, request, self.statistics).candidates
        self.predicted = self.prediction(self.candidates, self.reader)
        self.measured = self.measurement(self.candidates, self.reader)

    def pairs(self, side: str) -> np.ndarray:
        """Predicted, measured and relative error of each candidate, `[n, 3]`."""
        rows = [
            (predicted[count], measured[count], candidate.error)
            for entry, predicted, measured in zip(self.candidates, self.predicted, self.measured, strict=True)
            for count, candidate in entry.by_count.items()
            if entry.side.startswith(side) and not candidate.partition.is_identity
        ]
        return np.array(rows)

    def speed(self) -> tuple[float, float, int]:
        """Processor seconds for gradients of the whole calibration and for measuring all candidates, and their number.

        Both on a sample: gradients of two batches, five candidates of evenly spaced layers.
        """
        subject, source = self.subject, self.source.with_all_stacks()
        batches = batches_of(source, subject.calibrate_on, window=subject.window, tokens=subject.tokens)
        model = load(source.path, dtype=torch.float32)
        use_attention_interface(model, source.spec)
        begun = time.thread_time()
        collect_gradients(model, source.spec, batches[:2])
        spent = time.thread_time() - begun
        share = sum(map(positions_of, batches[:2])) / sum(map(positions_of, batches))
        wanted = [_key(entry) for entry in self.candidates]
        sample = wanted[:: max(1, len(wanted) // 5)][:5]
        prober = Prober(self.measurement.bench, self.reader)
        begun = time.thread_time()
        for key in sample:
            list(prober.measure(key[0], [key]))
        each = (time.thread_time() - begun) / len(sample)
        count = sum(len(entry.by_count) - 1 for entry in self.candidates)
        return spent / share, each * count, count


def _key(entry: EntryCandidates) -> Key:
    return entry.layer, entry.side, entry.by_count[min(entry.by_count)].partition.labels


class Counting:
    """A measurement that counts what is asked of it."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement, self.seen = measurement, set[Key]()

    def __call__(
        self, candidates: Sequence[EntryCandidates], read: LayerReader
    ) -> Sequence[dict[int, float]]:
        """What each candidate of each entry loses."""
        for entry in candidates:
            for candidate in entry.by_count.values():
                if not candidate.partition.is_identity:
                    self.seen.add((entry.layer, entry.side, candidate.partition.labels))
        return [dict(losses) for losses in self.measurement(candidates, read)]


class Reported:
    """What plans lose on data that nothing was chosen on."""

    def __init__(self, bench: Bench) -> None:
        subject, self.bench = bench.subject, bench
        self.batches = batches_of(
            bench.source, subject.report_on, window=subject.window, tokens=subject.reported
        )
        self.model = load(bench.source.path, dtype=torch.float32)
        self.layers = all_layers(bench.source, bench.statistics)
        with torch.inference_mode():
            self.outputs = [Output.of(self.model(**batch)) for batch in self.batches]
        self.known: dict[object, float] = {}

    def loss(self, ratio: float, loss: str) -> tuple[float, int]:
        """What the plan by some losses loses, and how many candidates were measured for it."""
        bench = self.bench
        options = PlanOptions(kv_maps="separate", allocation="knapsack", layer_loss=loss, format="grouped")
        request = Request.check(
            bench.source.spec, BudgetOptions(kv_ratio=ratio), options, measurable=True, predictable=True
        )
        counting = Counting(bench.measurement)
        measure = losses_for(request, bench.statistics, lambda: counting)  # pyright: ignore[reportArgumentType]
        plan = make_plan(bench.source, request, bench.statistics, measure=measure).plan
        groupings = plan.groupings
        if groupings not in self.known:
            convert_in_memory(self.model, self.layers, plan)
            with torch.inference_mode():
                losses = [
                    output.divergence(Output.of(self.model(**batch)))
                    for output, batch in zip(self.outputs, self.batches, strict=True)
                ]
            self.known[groupings] = sum(losses) / len(losses)
        return self.known[groupings], len(counting.seen)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", action="append", help="minilm, smollm2, dinov2, whisper-base")
    real_data(parser)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(environment())
    known = subjects(options.wikitext, options.images, options.image_size, options.speech, options.spoken)
    for name in options.model or known:
        bench = Bench(known[name](), options.work)
        _show_ranks(bench)
        _show_plans(bench)
        gradients, measuring, count = bench.speed()
        print(
            f"\n{name}: measuring {count} candidates takes {measuring / gradients:.1f} times as long as gradients of all "
            f"the calibration ({gradients:.0f} s of one processor, extrapolated from a sample)",
            flush=True,
        )


def _show_ranks(bench: Bench) -> None:
    what = what_is_measured(bench.source.checkpoint)
    table = Table(
        f"{bench.name}: losses of single entries ({what}), predicted against measured on other data",
        *(
            "of",
            "candidates",
            "Spearman",
            "correlation of logarithms",
            "measured / predicted",
            "spread (factor)",
        ),
        "Spearman of the merge rule's error",
    )
    for side, called in (("", "all"), ("key", "keys"), ("value", "values")):
        predicted, measured, error = bench.pairs(side).T
        ratio = np.log(measured / predicted)
        table.row(
            called,
            f"{len(ratio)}",
            f"{_rank(predicted, measured):.3f}",
            f"{np.corrcoef(np.log(predicted), np.log(measured))[0, 1]:.3f}",
            f"{np.exp(ratio.mean()):.2f}",
            f"{np.exp(ratio.std()):.2f}",
            f"{_rank(error, measured):.3f}",
        )


def _rank(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _show_plans(bench: Bench) -> None:
    reported = Reported(bench)
    table = Table(
        f"{bench.name}: what knapsack's plans lose on data that nothing was chosen on, over that of measured losses",
        *(
            "kept",
            "by measured",
            "by predicted",
            "by corrected",
            "measured for it",
            "by the merge rule's error",
        ),
    )
    for ratio, share in RATIOS.items():
        by = {loss: reported.loss(share, loss) for loss in ("measured", "predicted", "corrected", "error")}
        base, every = by["measured"]
        table.row(
            ratio,
            f"{base:.4f}",
            *(f"{by[loss][0] / base:.3f}" for loss in ("predicted", "corrected")),
            f"{by['corrected'][1]} of {every}",
            f"{by['error'][0] / base:.3f}",
        )


if __name__ == "__main__":
    main()
