"""Perplexity against bytes: types of the cache alone, heads aligned or folded into fewer, both, and both trained.

    python benchmarks/frontier.py [--model smollm2] [--windows 8] [--tokens 49152] [--only NAME ...] [--plot FILE]

Calibrated, repaired and distilled on the mixture of texts.py, scored on the first windows of 512 of WikiText-2 test and of
three texts that are in nothing before. Each row is printed as soon as it is known and kept in `--work`, so that an
interrupted run goes on. Ends with a table, the lower envelope of the first text marked, and a plot.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import gqakit
from common import Kept, arguments, environment
from gqakit.evaluation.drawing import BASELINE, COLOURS, FOLD, INK, axes_of, figure
from gqakit.evaluation.language import score_language
from gqakit.models.load import load
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from texts import UNSEEN, mixture, scored_windows
from zoo import SMOLLM2, fetch
from zoo.qwen import QWEN_CODER

MODELS = {"smollm2": SMOLLM2, "qwen-coder": QWEN_CODER}
SCORED = ("WikiText-2 test", *UNSEEN)
Row = dict[str, float]


STAGES = ("", "repaired", "distilled")


@dataclass(frozen=True)
class Way:
    """One way to spend: heads, types as an engine holds them, whether heads are in the basis for these types, training."""

    kv_ratio: float
    types: str
    prepared: bool = False
    recovery: str = ""
    """One of `STAGES`: each starts from the checkpoint of the one before."""
    made_for: str = ""
    """Types that the checkpoint was made for, where its cache has others."""
    merge: str = "fold"
    """The merge rule, where there are fewer heads."""

    @property
    def name(self) -> str:
        """For tables."""
        rule = "" if self.merge == "fold" else f" {self.merge}"
        heads = "" if self.kv_ratio == 1 else f"{self.kv_ratio:.3g} of the heads{rule}"
        basis = " in its basis" if self.prepared else ""
        types = "" if self.types == "f16" else f"{self.types}{basis}"
        what = " × ".join(part for part in (heads, types) if part) or "16 bits"
        what = f"{what}, {self.recovery}" if self.recovery else what
        return f"{what} for {self.made_for}" if self.made_for else what

    @property
    def weights(self) -> str:
        """What made its weights, as the plot's colours have it."""
        return self.recovery or ("original" if self.kv_ratio == 1 else self.merge)

    @property
    def before(self) -> Way:
        """The checkpoint that recovery starts from."""
        return replace(self, recovery=STAGES[STAGES.index(self.recovery) - 1])


MEAN = "unseen, mean"
LARGEST = 2.7
"""Times the original's perplexity, at the top of the plot."""
MADE_BY = {
    "original": (INK, "original"),
    "aligned": (BASELINE, "heads aligned"),
    "fold": (FOLD, "heads folded"),
    "repaired": (COLOURS[2], "folded, repaired"),
    "distilled": (COLOURS[0], "folded, distilled"),
}
"""Colour and name of what made the weights."""
CACHES = {
    "16": ("o", "16 bits"),
    "8": ("s", "8 bits"),
    "84": ("D", "8 and 4 bits"),
    "4": ("^", "4 bits"),
    "3": ("v", "3 bits"),
}
"""Mark and name of a cache by the bits of its numbers."""
SHARES = (3 / 4, 2 / 3, 1 / 2, 1 / 3)
UNTRAINED = (
    Way(1, "f16"),
    Way(1, "q8_0"),
    Way(1, "q8_0", True),
    Way(1, "fp8"),
    Way(1, "q8_0+h,q4_0+h"),
    Way(1, "q8_0+h,q4_0+h", True),
    Way(1, "q5_1+h,q4_0+h", True),
    Way(1, "q4_0"),
    Way(1, "q4_0+h"),
    Way(1, "q4_0+h", True),
    Way(1, "q4_0", True),
    Way(1, "iq4_nl+h"),
    Way(1, "iq4_nl+h", True),
    Way(1, "int3/32+h", True),
    *(Way(share, types) for types in ("f16", "q8_0") for share in SHARES),
    *(Way(share, types, True) for types in ("q4_0+h", "iq4_nl+h") for share in SHARES),
    *(Way(share, types, merge="aligned") for types in ("f16", "q8_0", "iq4_nl+h") for share in SHARES),
)
RECOVERED = tuple(
    Way(ratio, types, types != "f16", recovery)
    for ratio, types in (
        *((ratio, types) for types in ("q4_0+h", "iq4_nl+h", "f16") for ratio in SHARES),
        *((1, types) for types in ("q4_0+h", "iq4_nl+h")),
    )
    for recovery in STAGES[1:]
)
WIDER_CACHE = tuple(
    Way(ratio, types, recovery="distilled", made_for="iq4_nl+h")
    for types in ("f16", "q8_0")
    for ratio in SHARES
)
"""The weights that were trained beside fewer bits, with more bits."""
WAYS = (*UNTRAINED, *RECOVERED, *WIDER_CACHE)


class Bench:
    """A model, its calibration, and what was measured so far."""

    def __init__(self, options: Any, model: str = "smollm2", weights: str = "float32") -> None:
        self.options, self.weights = options, weights
        self.work = options.work / ("frontier" if model == "smollm2" else f"frontier-{model}")
        self.work.mkdir(parents=True, exist_ok=True)
        self.source = Source.open(fetch(MODELS[model]))
        self.spec = self.source.spec
        self.statistics = self.work / f"statistics-{options.tokens}.safetensors"
        self.text = mixture(options.wikitext)
        self.known = Kept(self.work / f"rows-{options.tokens}-{options.windows}.json")
        tokenizer = load_tokenizer(self.source.checkpoint)
        self.windows = scored_windows(tokenizer, SCORED, options.wikitext, options.windows)

    def checkpoint(self, way: Way) -> Path:
        """The source, or a conversion of it: merged, in the basis for its types, both; repaired, distilled."""
        if way.made_for:
            return self.checkpoint(replace(way, types=way.made_for, prepared=True, made_for=""))
        if not way.prepared:  # the same weights whatever holds their cache
            way = replace(way, types="f16")
        if way.kv_ratio == 1 and not way.prepared:
            return self.source.path
        out = self.work / way.name.replace("/", "-").replace(" ", "_").replace(",", "")
        if not (out / "config.json").is_file():
            {"": self._convert, "repaired": self._repair, "distilled": self._distil}[way.recovery](way, out)
        return out

    def _convert(self, way: Way, out: Path) -> None:
        if not self.statistics.is_file():
            gqakit.calibrate(
                self.source.path, self.statistics, text=self.text, tokens=self.options.tokens, dtype=self.weights,
                progress=False,
            )  # fmt: skip
        pair = check_cache_types(way.types, self.spec)
        assert pair is not None
        share = pair.nbytes(1, 1, self.spec.head_dim) / (4 * self.spec.head_dim) if way.prepared else 1.0
        gqakit.convert(
            self.source.path, out, kv_ratio=way.kv_ratio * share, kv_cache=way.types if way.prepared else "f16",
            kv_maps="separate", statistics=self.statistics, text=self.text, merge=way.merge,
            losses=self.work / ("losses.jsonl" if way.merge == "fold" else f"losses-{way.merge}.jsonl"),
            layer_loss=self.options.layer_loss, dtype=self.weights, evaluate=False, progress=False,
        )  # fmt: skip

    def _repair(self, way: Way, out: Path) -> None:
        started = time.monotonic()
        gqakit.repair(
            self.checkpoint(way.before), out, source=str(self.source.path), text=self.text, evaluate=False,
            kv_cache=way.types, dtype=self.options.dtype, progress=False,
        )  # fmt: skip
        print(f"{way.name}: {time.monotonic() - started:,.0f} s of repair", flush=True)

    def _distil(self, way: Way, out: Path) -> None:
        options = self.options
        gqakit.uptrain(
            self.checkpoint(way.before), out, teacher=str(self.source.path), text=self.text, kl=1.0,
            train="attention", learning_rate=options.learning_rate, max_steps=options.steps,
            warmup_steps=max(1, options.steps // 20), gradient_accumulation_steps=4,
            eval_steps=max(1, options.steps // 4), save_steps=max(1, options.steps // 8), kv_cache=way.types,
            dtype=options.dtype, progress=False,
        )  # fmt: skip
        result = json.loads((out / "gqakit-uptrain.json").read_text())["result"]
        print(
            f"{way.name}: {result['seconds']:,.0f} s in {result['step']} steps, {result['tokens']:,} tokens, best after "
            f"step {result['best_step']}",
            flush=True,
        )

    def measure(self, way: Way) -> Row:
        """Share of the 16-bit bytes under "bytes", and perplexity on every text."""
        if way.name not in self.known:
            source = Source.open(self.checkpoint(way))
            pair = check_cache_types(way.types, source.spec)
            assert pair is not None
            model = load(source.path, dtype=getattr(torch, self.weights))
            with rounded_cache(model, source.spec, None if way.types == "f16" else pair):
                found = {
                    name: score_language(model, windows).perplexity for name, windows in self.windows.items()
                }
            halves = 2 * self.spec.head_dim * 2 * sum(self.spec.key_heads)
            self.known[way.name] = {"bytes": source.spec.cache.bytes_in(pair) / halves, **found}
        return self.known[way.name]


def main() -> None:
    """Print each row, then the table, then draw."""
    parser = arguments(str(__doc__))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=49152, help="to calibrate on")
    parser.add_argument("--steps", type=int, default=60, help="of distillation, 2,048 tokens each")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of distillation")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of products in recovery"
    )
    parser.add_argument("--model", choices=list(MODELS), default="smollm2")
    parser.add_argument(
        "--weights", choices=("float32", "bfloat16"), default="float32", help="where nothing is trained"
    )
    parser.add_argument("--layer-loss", choices=("corrected", "predicted"), default="corrected")
    parser.add_argument("--only", nargs="+", default=[way.name for way in UNTRAINED], help="names of ways")
    parser.add_argument("--known", action="store_true", help="measure nothing; every row that is known")
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    bench = Bench(options, options.model, options.weights)
    if wrong := set(options.only) - {way.name for way in WAYS}:
        parser.error(f"unknown: {', '.join(wrong)}; ways are {'; '.join(way.name for way in WAYS)}")
    print(environment())
    found: list[tuple[Way, Row]] = []
    for way in WAYS:
        if way.name in bench.known if options.known else way.name in ("16 bits", *options.only):
            found.append((way, bench.measure(way)))
            print(f"{way.name}: {found[-1][1]}", flush=True)
    print(table(found))
    if options.plot is not None:
        draw(options.plot, found, bench.source.short_name)


def ratios(row: Row, whole: Row) -> dict[str, float]:
    """Times the original's perplexity: on the text that is like the calibration, and the mean over the unseen ones."""
    times = {name: row[name] / whole[name] for name in SCORED}
    return {SCORED[0]: times[SCORED[0]], MEAN: sum(times[name] for name in UNSEEN) / len(UNSEEN)}


def best(row: Row, found: list[tuple[Way, Row]], text: str) -> bool:
    """Whether no other loses less on a text, or in the mean over the unseen ones, with as few bytes."""
    whole = found[0][1]
    mine = ratios(row, whole)[text]
    return all(
        ratios(other, whole)[text] >= mine for _, other in found if other["bytes"] <= row["bytes"] + 1e-9
    )


def table(found: list[tuple[Way, Row]]) -> str:
    """Markdown, most bytes first; ratios that no other row beats with as few bytes are in bold."""
    whole = found[0][1]
    head = ("KV bytes of 16 bit", "what", SCORED[0], "x original", *UNSEEN, f"{MEAN} x")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for way, row in sorted(found, key=lambda each: (-each[1]["bytes"], each[1][SCORED[0]])):
        shown = {
            text: f"**{times:.3f}**" if best(row, found, text) else f"{times:.3f}"
            for text, times in ratios(row, whole).items()
        }
        cells = (
            f"{row['bytes']:.1%}", way.name, f"{row[SCORED[0]]:.2f}", shown[SCORED[0]],
            *(f"{row[name]:.2f}" for name in UNSEEN), shown[MEAN],
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, found: list[tuple[Way, Row]], model: str) -> None:
    """Times the original's perplexity against bytes: colours for what made the weights, marks for the cache."""
    made_by = (
        "benchmarks/frontier.py: 8 windows of 512 tokens of each text; unseen: Brown, Emma, Python's library"
    )
    with figure(path, columns=2, made_by=made_by, alike=True) as both:
        for axes, text, shown in zip(
            both, (SCORED[0], MEAN), (SCORED[0], "mean of unseen texts"), strict=True
        ):
            _points(axes, found, text)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.set_xticks([1, 0.5, 0.3, 0.2, 0.1], ["100 %", "50 %", "30 %", "20 %", "10 %"])
            axes.set_ylim(0.97, LARGEST)
            axes.set_yticks([1, 1.1, 1.2, 1.5, 2, 2.5], ["1", "1.1", "1.2", "1.5", "2", "2.5"])
            axes_of(
                axes,
                f"{model}, {shown}",
                "KV bytes, share of 16 bits",
                "times the original's perplexity",
            )
        _legends(both, [way for way, _ in found])


def _points(axes: Any, found: list[tuple[Way, Row]], text: str) -> None:
    """The rows, the lower envelope behind them; what is above the plot at its edge, with its value."""
    whole = found[0][1]
    for way, row in found:
        times, mark = ratios(row, whole)[text], CACHES[bits(way)][0]
        at, colour = (row["bytes"], min(times, LARGEST)), MADE_BY[way.weights][0]
        axes.plot(*at, mark, color=colour, clip_on=False)
        if times > LARGEST and bits(way) == "16":
            where: dict[str, Any] = {"xytext": (0, -13), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{times:.3g} ×", at, **where, color=colour, fontsize=8)
    low = sorted((row["bytes"], ratios(row, whole)[text]) for _, row in found if best(row, found, text))
    axes.plot(*zip(*low, strict=True), "-", color="0.6", zorder=0)


def _legends(both: Any, ways: list[Way]) -> None:
    """Colours in the one, marks in the other."""
    from matplotlib.lines import Line2D

    colours = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=label)
        for name, (colour, label) in MADE_BY.items()
        if any(way.weights == name for way in ways)
    ]
    marks = [
        Line2D([], [], color=INK, marker=mark, linestyle="", label=label)
        for name, (mark, label) in CACHES.items()
        if any(bits(way) == name for way in ways)
    ]
    envelope = Line2D([], [], color="0.6", label="lower envelope")
    for axes, handles in zip(both, ([*colours, envelope], marks), strict=True):
        where = {"loc": "upper right", "bbox_to_anchor": (1.0, 0.95)}  # below what is named at the upper edge
        axes.legend(handles=handles, **where, frameon=False, fontsize=8, labelspacing=0.2)


def bits(way: Way) -> str:
    """The bits of the numbers of its cache, of keys and of values where these differ: a key of `CACHES`."""
    found = [re.findall(r"\d+", types)[0] for types in way.types.split(",")]
    return "".join(dict.fromkeys(found))


if __name__ == "__main__":
    main()
