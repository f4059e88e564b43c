"""Perplexity against bytes: types of the cache alone, fewer heads alone, and both, on SmolLM2.

    python benchmarks/frontier.py [--windows 8] [--tokens 12288] [--only NAME ...]

WikiText-2: calibrated on the first tokens of valid, scored on the first windows of 512 of test. Each row is printed as soon
as it is known and kept in `--work`, so that an interrupted run goes on. Ends with a table, the lower envelope marked, and a
plot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gqakit
from common import arguments, environment, text_of
from gqakit.data.text import token_windows
from gqakit.evaluation.drawing import COLOURS, axes_of, figure
from gqakit.evaluation.language import score_language
from gqakit.models.load import load
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from zoo import SMOLLM2, fetch


@dataclass(frozen=True)
class Way:
    """One way to spend: heads, types as an engine holds them, and whether heads are in the basis for these types."""

    kind: str
    kv_ratio: float
    types: str
    prepared: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        heads = "" if self.kv_ratio == 1 else f"{self.kv_ratio:.3g} of the heads"
        basis = " in its basis" if self.prepared else ""
        types = "" if self.types == "f16" else f"{self.types}{basis}"
        return " × ".join(part for part in (heads, types) if part) or "16 bits"


ALONE, MERGED, BOTH = "types alone", "heads alone", "both"
WAYS = (
    Way(ALONE, 1, "f16"),
    Way(ALONE, 1, "q8_0"),
    Way(ALONE, 1, "fp8"),
    Way(ALONE, 1, "q8_0+h,q4_0+h"),
    Way(ALONE, 1, "q4_0"),
    Way(ALONE, 1, "q4_0+h"),
    Way(ALONE, 1, "q4_0+h", True),
    Way(ALONE, 1, "q4_0", True),
    Way(ALONE, 1, "iq4_nl+h", True),
    Way(ALONE, 1, "int3/32+h", True),
    Way(MERGED, 2 / 3, "f16"),
    Way(MERGED, 1 / 2, "f16"),
    Way(MERGED, 1 / 3, "f16"),
    Way(BOTH, 2 / 3, "q8_0"),
    Way(BOTH, 2 / 3, "q4_0+h", True),
    Way(BOTH, 1 / 2, "q4_0+h", True),
    Way(BOTH, 1 / 3, "q4_0+h", True),
)


class Bench:
    """SmolLM2, its calibration, and what was measured so far."""

    def __init__(self, options: Any) -> None:
        self.options, self.work = options, options.work / "frontier"
        self.work.mkdir(parents=True, exist_ok=True)
        self.source = Source.open(fetch(SMOLLM2))
        self.spec = self.source.spec
        self.statistics = self.work / f"statistics-{options.tokens}.safetensors"
        self.valid = options.wikitext / "valid.txt"
        self.file = self.work / f"rows-{options.tokens}-{options.windows}.json"
        self.known: dict[str, list[float]] = json.loads(self.file.read_text()) if self.file.is_file() else {}
        tokenizer = load_tokenizer(self.source.checkpoint)
        text = text_of(options.wikitext, "test")
        self.windows = token_windows(tokenizer, text, window=512, tokens=512 * options.windows)

    def checkpoint(self, way: Way) -> Path:
        """The source, or a conversion of it: merged, in the basis for its types, or both."""
        if way.kv_ratio == 1 and not way.prepared:
            return self.source.path
        if not self.statistics.is_file():
            gqakit.calibrate(
                self.source.path, self.statistics, text=self.valid, tokens=self.options.tokens, progress=False
            )
        out = self.work / way.name.replace("/", "-").replace(" ", "_")
        if not (out / "config.json").is_file():
            pair = check_cache_types(way.types, self.spec)
            assert pair is not None
            share = pair.nbytes(1, 1, self.spec.head_dim) / (4 * self.spec.head_dim) if way.prepared else 1.0
            gqakit.convert(
                self.source.path, out, kv_ratio=way.kv_ratio * share, kv_cache=way.types if way.prepared else "f16",
                kv_maps="separate", statistics=self.statistics, losses=self.work / "losses.jsonl", text=self.valid,
                progress=False,
            )  # fmt: skip
        return out

    def measure(self, way: Way) -> tuple[float, float]:
        """Share of the 16-bit bytes, and perplexity."""
        if way.name not in self.known:
            source = Source.open(self.checkpoint(way))
            pair = check_cache_types(way.types, source.spec)
            assert pair is not None
            model = load(source.path, dtype=torch.float32)
            with rounded_cache(model, source.spec, None if way.types == "f16" else pair):
                scores = score_language(model, self.windows)
            halves = 2 * self.spec.head_dim * 2 * sum(self.spec.key_heads)
            self.known[way.name] = [source.spec.cache.bytes_in(pair) / halves, scores.perplexity]
            self.file.write_text(json.dumps(self.known))
        share, perplexity = self.known[way.name]
        return share, perplexity


def main() -> None:
    """Print each row, then the table, then draw."""
    parser = arguments(str(__doc__))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--only", nargs="+", default=None, help="names of ways")
    parser.add_argument("--plot", type=Path, default=None)
    bench = Bench(options := parser.parse_args())
    print(environment())
    found: list[tuple[Way, float, float]] = []
    for way in WAYS:
        if options.only is None or way.name in options.only:
            found.append((way, *bench.measure(way)))
            print(f"{way.name}: {found[-1][1]:.1%} of the bytes, perplexity {found[-1][2]:.3f}", flush=True)
    print(table(found))
    if options.plot is not None:
        draw(options.plot, found)


def table(found: list[tuple[Way, float, float]]) -> str:
    """Markdown, most bytes first; rows that no other beats with as few bytes are in bold."""
    whole = found[0][2]
    lines = ["| KV bytes of 16 bit | what | perplexity | × original |", "|---|---|---|---|"]
    for way, share, perplexity in sorted(found, key=lambda row: (-row[1], row[2])):
        best = all(other >= perplexity for _, size, other in found if size <= share + 1e-9)
        mark = "**" if best else ""
        lines.append(
            f"| {share:.1%} | {mark}{way.name}{mark} | {perplexity:.2f} | {perplexity / whole:.3f} |"
        )
    return "\n".join(lines)


def draw(path: Path, found: list[tuple[Way, float, float]]) -> None:
    """Perplexity against bytes, one colour for each kind."""
    with figure(path) as axes:
        for kind, colour in zip((MERGED, ALONE, BOTH), COLOURS, strict=False):
            rows = [(share, perplexity) for way, share, perplexity in found if way.kind == kind]
            axes.plot(*zip(*sorted(rows), strict=True), "o", color=colour, label=kind)
        low = [
            (share, perplexity)
            for _, share, perplexity in found
            if all(other >= perplexity for _, size, other in found if size <= share + 1e-9)
        ]
        axes.plot(*zip(*sorted(low), strict=True), "-", color="0.6", zorder=0, label="lower envelope")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend()
        axes_of(axes, "SmolLM2-135M, WikiText-2 test", "KV bytes, share of 16 bits", "perplexity")


if __name__ == "__main__":
    main()
