"""Every grouping method, merge rule, allocation and kind of map at equal bytes, no training: one table.

    python benchmarks/methods_table.py [--only fold]

SmolLM2-135M-Instruct (3 KV heads a layer), WikiText-2. `uniform` keeps the same share in every layer; `knapsack` spends the
bytes by losses measured on the calibration text. With 3 heads many methods agree: what was scored once is not
scored again. Results are kept in the scratch directory, so an interrupted run goes on.
"""

from __future__ import annotations

import json
from typing import Any

from common import Table, arguments, environment
from gqakit.api import MeasureOptions
from gqakit.core.capacity import resolve_budget
from gqakit.methods import METHODS
from gqakit.options import PlanOptions
from gqakit.plan import Plan
from gqakit.planner import make_plan
from gqakit.progress import silent
from workbench import Workbench

RATIOS = {"2/3": 2 / 3, "1/2": 1 / 2, "1/3": 1 / 3}
RULES = ("fold", "aligned", "mean")


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", action="append", help="merge rules to measure (default: all three)")
    options = parser.parse_args()
    bench = Scored(Workbench.on_smollm2(options.wikitext, options.work))
    print(environment())
    for merge in options.only or RULES:
        table = Table(
            f"Merge rule {merge}: perplexity (KL to the source)", "grouping", "allocation", "maps", *RATIOS
        )
        for method in sorted(METHODS, key=lambda name: (name != "optimal", name)):
            for allocation, maps in (
                ("uniform", "shared"), ("uniform", "separate"), ("knapsack", "shared"), ("knapsack", "separate"),
            ):  # fmt: skip
                cells = [bench.cell(ratio, method, merge, allocation, maps) for ratio in RATIOS.values()]
                if any(cell != "-" for cell in cells):
                    table.row(method, allocation, maps, *cells)
    table = Table(
        "Knapsack by measured losses against its stand-in, fold, optimal", "weighs", "maps", *RATIOS
    )
    for loss in ("measured", "error"):
        for maps in ("shared", "separate"):
            cells = [
                bench.cell(ratio, "optimal", "fold", "knapsack", maps, layer_loss=loss)
                for ratio in RATIOS.values()
            ]
            table.row(loss, maps, *cells)


class Scored:
    """A workbench that scores a plan once."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.moments = bench.moments()
        self.windows = [bench.windows("test", 8, 512)]
        self.path = bench.work / "scores.json"
        self.scores: dict[str, str] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def cell(self, ratio: float, method: str, merge: str, allocation: str, maps: str, **how: Any) -> str:
        """One score; "-" where the method or the allocation does not reach the budget."""
        asked = resolve_budget(self.bench.spec.cache, kv_ratio=ratio)
        if (method == "mqa" and (allocation, ratio) != ("knapsack", 1 / 2) and ratio > 1 / 3) or (
            allocation == "uniform" and ratio == 1 / 2
        ):
            return "-"
        options = PlanOptions(method=method, merge=merge, allocation=allocation, kv_maps=maps, **how)  # pyright: ignore[reportArgumentType]
        measure = None
        if allocation == "knapsack" and options.layer_loss != "error":
            where = MeasureOptions(
                [self.bench.wikitext / "valid.txt"], losses=self.bench.work / f"losses-{merge}.jsonl"
            )
            measure = where.on(self.bench.source, self.moments, merge, silent)
        plan = make_plan(self.bench.source, self.bench.spec, asked, options, self.moments, measure=measure)
        return self.score(plan)

    def score(self, plan: Plan) -> str:
        """Perplexity and divergence of a plan, from memory where its groups and rule were scored before."""
        key = json.dumps([plan.merging.rule, [[layer.key, layer.value] for layer in plan.layers]])
        if key not in self.scores:
            (score,) = self.bench.score(plan, self.moments, self.windows)
            self.scores[key] = f"{score.perplexity:,.2f} ({score.kl:.3f})"
            self.path.write_text(json.dumps(self.scores))
        return self.scores[key]


if __name__ == "__main__":
    main()
