"""SmolLM2-135M-Instruct on WikiText-2: what conversion costs, without training, and the known-answer checkpoint.

    python benchmarks/main_figures.py

Prints the figures that the README and docs/results quote.
"""

from __future__ import annotations

import math
import shutil

import torch

from common import arguments, environment, print_table
from gqakit.api import PlanOptions, convert
from gqakit.api.planning import BudgetOptions
from gqakit.evaluation.language import LanguageScores, score_language
from gqakit.runtime import load
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
    rows = [
        row("original", "1", score_language(bench.reference, test), score_language(bench.reference, long), "")
    ]
    moments = bench.moments()
    for kept in (2, 1):
        for name, method, merge in (("neighbour mean", "neighbour", "mean"), ("fold", "optimal", "fold")):
            plan = bench.plan(kept, moments, method=method, merge=merge)
            scores = bench.score(plan, moments, (test, long))
            floor = f"<= {FLOORS[kept]:g}" if merge == "fold" else ""
            rows.append(row(name, f"{kept}/3", *scores, floor))
        out = bench.work / "refitted"
        convert(
            str(bench.source.path),
            out,
            budget=BudgetOptions(kv_heads=kept),
            moments=moments.path,
            text=[bench.wikitext / "valid.txt"],
            refit=True,
            overwrite=out.exists(),
        )
        model = load(out, dtype=torch.float32)
        scores = [score_language(model, windows, bench.reference) for windows in (test, long)]
        rows.append(row("fold, refitted", f"{kept}/3", *scores, f"<= {FLOORS[kept]:g}"))
        shutil.rmtree(out)
    header = (
        "how",
        "KV kept",
        "perplexity, 8 x 512",
        "KL",
        "same top token",
        "perplexity, 2 x 2048",
        "KL",
        "asked",
    )
    print_table(
        "SmolLM2-135M-Instruct, WikiText-2 test, calibrated on 24 x 512 tokens of valid", header, rows
    )

    spread = spread_heads(bench.source, bench.work / "nine-heads")
    nll = {"original": math.log(score_language(bench.reference, test).perplexity)}
    nll["nine heads"] = math.log(score_language(load(spread, dtype=torch.float32), test).perplexity)
    for name, merge in (("fold", "fold"), ("aligned", "aligned"), ("neighbour mean", "mean")):
        out = bench.work / "three-heads"
        shutil.rmtree(out, ignore_errors=True)
        convert(
            str(spread),
            out,
            budget=BudgetOptions(kv_heads=3),
            options=PlanOptions(method="neighbour" if merge == "mean" else "optimal", merge=merge),
            text=[bench.wikitext / "valid.txt"],
        )
        nll[f"nine heads to three, {name}"] = math.log(
            score_language(load(out, dtype=torch.float32), test).perplexity
        )
    print_table(
        "Synthetic checkpoint with a known answer: heads repeated to nine and turned",
        ("checkpoint", "NLL", "minus original"),
        [(name, f"{value:.5f}", f"{value - nll['original']:+.5f}") for name, value in nll.items()],
    )


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
