"""What calibration text is worth on texts that nobody calibrated on: perplexity of SmolLM2 with fewer heads.

    python benchmarks/unseen_text.py [--ratio 1/3 ...] [--on NAME ...]

`fold`, the same number of heads in every layer, keys and values grouped apart; the first windows of each text are scored.
Each row is kept in `--work` as soon as it is known, so that an interrupted run goes on. The texts are in `texts.py`.
"""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

import gqakit
from common import STAND_INS, Kept, Table, arguments, environment, text_of
from gqakit.data.text import Text, read_text
from gqakit.evaluation.language import score_language
from gqakit.models.load import load
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from texts import UNSEEN, mixture, scored_windows
from zoo import SMOLLM2, fetch

SCORED = ("WikiText-2 test", *UNSEEN, "German")
WAYS = {
    "bundled": ("gqakit's own text", 12288),
    "wikitext": ("WikiText-2 valid", 12288),
    "samples": ("its own samples", 12288),
    "chats": ("its own chats", 12288),
    "mix": ("the mixture", 12288),
    "mix-samples": ("the mixture and its own samples", 12288),
    "mix-49152": ("the mixture", 49152),
}
"""What is calibrated on: a name, as tables say it, and the number of tokens."""


class Bench:
    """SmolLM2, the texts that are scored, and what was measured so far."""

    def __init__(self, options: Any) -> None:
        self.options, self.work = options, options.work / "unseen"
        self.work.mkdir(parents=True, exist_ok=True)
        self.source = Source.open(fetch(SMOLLM2))
        tokenizer = load_tokenizer(self.source.checkpoint)
        self.windows = scored_windows(tokenizer, SCORED, options.wikitext, options.windows)
        self.known = Kept(self.work / f"rows-{options.windows}.json")

    def text(self, way: str) -> Text:
        """What one way calibrates on."""
        wikitext = self.options.wikitext
        if way == "bundled":
            return read_text([STAND_INS["valid"]])
        if way == "wikitext":
            return text_of(wikitext, "valid")
        if way == "mix-samples":
            return Text.mixed([*mixture(wikitext).parts, self.own("samples")])
        return self.own(way) if way in ("samples", "chats") else mixture(wikitext)

    def own(self, kind: str) -> Text:
        """What the model itself writes; a fifth more tokens than are needed, as pieces may join."""
        out = self.work / f"{kind}.txt"
        if not out.is_file():
            gqakit.sample(self.source.path, out, tokens=15360, chat=kind == "chats", progress=False)
        return read_text([out])

    def scores(self, name: str, path: Path) -> dict[str, float]:
        """Perplexity of a checkpoint on every text."""
        if name not in self.known:
            model = load(path, dtype=torch.float32)
            self.known[name] = {
                text: score_language(model, windows).perplexity for text, windows in self.windows.items()
            }
        return self.known[name]

    def converted(self, way: str, ratio: Fraction) -> dict[str, float]:
        """Perplexities with fewer heads, calibrated in one way."""
        name = f"{way} {ratio}"
        if name not in self.known:
            out, statistics = self.work / "out", self.work / f"{way}.safetensors"
            shutil.rmtree(out, ignore_errors=True)
            if not statistics.is_file():
                gqakit.calibrate(
                    self.source.path, statistics, text=self.text(way), tokens=WAYS[way][1], gradients=False,
                    progress=False,
                )  # fmt: skip
            gqakit.convert(
                self.source.path, out, kv_ratio=float(ratio), allocation="uniform", kv_maps="separate",
                statistics=statistics, evaluate=False, progress=False,
            )  # fmt: skip
            self.scores(name, out)
            shutil.rmtree(out)
        return self.known[name]


def main() -> None:
    """Print a row as soon as it is known."""
    parser = arguments(str(__doc__))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--ratio", action="append", type=Fraction, help="default: 2/3, 1/3")
    parser.add_argument("--on", nargs="+", choices=list(WAYS), default=list(WAYS))
    bench = Bench(options := parser.parse_args())
    print(environment())
    table = Table("SmolLM2-135M, perplexity", "KV kept", "calibrated on", "tokens", *SCORED, "unseen, mean x")
    original = bench.scores("original", bench.source.path)

    def row(kept: str, label: str, tokens: str, found: dict[str, float]) -> None:
        unseen = sum(found[text] / original[text] for text in UNSEEN) / len(UNSEEN)
        table.row(kept, label, tokens, *(f"{found[text]:.2f}" for text in SCORED), f"{unseen:.3f}")

    row("1", "original", "", original)
    for ratio in options.ratio or (Fraction(2, 3), Fraction(1, 3)):
        for way in options.on:
            row(str(ratio), WAYS[way][0], f"{WAYS[way][1]:,}", bench.converted(way, ratio))


if __name__ == "__main__":
    main()
