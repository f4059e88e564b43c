"""Local repair of SmolLM2-135M-Instruct: before and after, at three budgets.

    python benchmarks/repair_smollm2.py [--ratio 1/2] [--dtype bfloat16]

Converted with `optimal`, `fold`, `knapsack` and separate maps on WikiText-2 valid, repaired on the same text; scored on
WikiText-2 test and on the Brown corpus, which neither has read.
"""

from __future__ import annotations

import shutil
import time
from fractions import Fraction

import torch

from brown import brown_windows
from common import Table, arguments, environment, plan_within
from gqakit.conversion.convert import convert_checkpoint
from gqakit.evaluation.language import LanguageScores, score_language
from gqakit.models.load import load
from gqakit.planning.options import BudgetOptions, PlanOptions
from gqakit.planning.plan import Plan
from gqakit.recovery.repair.options import RepairOptions
from gqakit.recovery.repair.repair import repair
from gqakit.recovery.repair.summary import summary
from workbench import Workbench


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--ratio", action="append", help="KV bytes to keep (default: 1/2, 1/3, 2/3)")
    parser.add_argument("--tokens", type=int, default=RepairOptions.tokens, help="tokens to repair on")
    parser.add_argument("--steps", type=int, default=RepairOptions.steps, help="steps per layer")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of products in repair"
    )
    given = parser.parse_args()
    bench = Workbench.on_smollm2(given.wikitext, given.work)
    options = RepairOptions(
        source=str(bench.source.path),
        text=str(bench.wikitext / "valid.txt"),
        tokens=given.tokens,
        steps=given.steps,
        dtype=given.dtype,
        evaluate=False,
    )
    windows = [bench.windows("test", 8, 512), brown_windows(bench.tokenizer, 512)]
    originals = [score_language(bench.reference, each) for each in windows]
    print(f"{environment()}\n{options}")
    table = Table(
        "SmolLM2-135M-Instruct, local repair",
        *("KV kept", "bytes/token", "checkpoint", "WikiText-2 test", "x original", "KL", "same top token"),
        *("Brown", "x original", "KL", "seconds"),
    )

    def row(kept: str, size: int, name: str, scores: list[LanguageScores], seconds: str) -> None:
        cells = []
        for score, original, top in zip(scores, originals, (True, False), strict=True):
            times = score.perplexity / original.perplexity
            cells += [f"{score.perplexity:.2f}", f"{times:.3f}", f"{score.kl:.4f}"]
            cells += [f"{score.top1:.1%}"] if top else []
        table.row(kept, f"{size:,}", name, *cells, seconds)

    row("1", bench.spec.cache.bytes_per_token, "original", originals, "")
    notes: list[str] = []
    for ratio in given.ratio or ("1/2", "1/3", "2/3"):
        plain, fixed = (
            bench.work / f"repair-{ratio.replace('/', '-of-')}-{name}" for name in ("plain", "fixed")
        )
        plan = _plan(bench, float(Fraction(ratio)))
        if not (plain / "config.json").is_file():
            convert_checkpoint(bench.source, plan, bench.statistics(), plain, "")
        size = plan.budget.kv_bytes_per_token
        scores = [score_language(load(plain, dtype=torch.float32), each, bench.reference) for each in windows]
        row(ratio, size, "converted", scores, "")
        start, busy = time.monotonic(), time.process_time()
        result = repair(
            plain,
            fixed,
            options=options.changed(overwrite=fixed.exists()),
            progress=False,
        )
        seconds = f"{time.monotonic() - start:.0f} ({time.process_time() - busy:.0f} of processor)"
        scores = [score_language(load(fixed, dtype=torch.float32), each, bench.reference) for each in windows]
        row(ratio, size, "repaired", scores, seconds)
        notes.append(f"{ratio}: {summary(result.layers)}")
        shutil.rmtree(plain)
    print("\n" + "\n".join(notes))


def _plan(bench: Workbench, ratio: float) -> Plan:
    return plan_within(
        bench.source,
        BudgetOptions(kv_ratio=ratio),
        PlanOptions(allocation="knapsack", kv_maps="separate"),
        bench.statistics(),
        lambda: bench.measurement("fold"),
    ).plan


if __name__ == "__main__":
    main()
