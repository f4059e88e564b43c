"""SmolLM2-135M-Instruct on WikiText-2: what conversion costs, without training, and the known-answer checkpoint.

    python benchmarks/main_figures.py

Prints the figures that the README and docs/results quote.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import gqakit
from common import Table, arguments, environment
from gqakit.evaluation.language import LanguageScores, score_language
from gqakit.models.load import load
from known_answer import spread_heads
from workbench import Workbench

FLOORS = {2: 46.0, 1: 200.0}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    bench = Workbench.on_smollm2(options.wikitext, options.work)
    test = bench.windows("test", 8, 512)
    long = bench.windows("test", 2, 2048)
    print(environment())
    table = Table(
        "SmolLM2-135M-Instruct, WikiText-2 test, calibrated on 24 x 512 tokens of valid",
        *(
            "how",
            "KV kept",
            "perplexity, 8 x 512",
            "KL",
            "same top token",
            "perplexity, 2 x 2048",
            "KL",
            "asked",
        ),
    )
    original = score_language(bench.reference, test)
    table.row(*row("original", "1", original, score_language(bench.reference, long), ""))
    statistics = bench.statistics()
    for kept in (2, 1):
        for name, method, merge in (("neighbour mean", "neighbour", "mean"), ("fold", "optimal", "fold")):
            plan = bench.plan(kept, statistics, method=method, merge=merge)
            short_score, long_score = bench.score(plan, statistics, (test, long))
            asked = f"<= {FLOORS[kept]:g}" if merge == "fold" else ""
            table.row(*row(name, f"{kept}/3", short_score, long_score, asked))

    spread = spread_heads(bench.source, bench.work / "nine-heads")
    table = Table(
        "Synthetic checkpoint with a known answer: 3 KV heads repeated to 9 and turned",
        *("checkpoint", "NLL", "minus original"),
    )
    base = math.log(original.perplexity)
    table.row("original", f"{base:.5f}", "")

    def report(name: str, path: Path) -> None:
        nll = math.log(score_language(load(path, dtype=torch.float32), test).perplexity)
        table.row(name, f"{nll:.5f}", f"{nll - base:+.5f}")

    report("nine heads", spread)
    taken = bench.work / "statistics-nine-heads.safetensors"
    gqakit.calibrate(spread, taken, text=bench.wikitext / "valid.txt", progress=False)
    for method, merge in (("optimal", "fold"), ("optimal", "aligned"), ("neighbour", "mean")):
        out = bench.work / "three-heads"
        gqakit.convert(
            spread,
            out,
            kv_heads=3,
            method=method,
            merge=merge,
            statistics=taken,
            overwrite=out.exists(),
            progress=False,
        )
        report(f"nine heads to three, {method}, {merge}", out)


def row(name: str, kept: str, test: LanguageScores, long: LanguageScores, asked: str) -> tuple[str, ...]:
    """One line of the table."""
    return (
        name,
        kept,
        f"{test.perplexity:,.2f}",
        f"{test.kl:.4f}",
        f"{test.top1:.1%}",
        f"{long.perplexity:,.2f}",
        f"{long.kl:.4f}",
        asked,
    )


if __name__ == "__main__":
    main()
