"""Every grouping method, merge rule, allocation and kind of map at equal bytes, no training: one table.

    python benchmarks/methods_table.py [--only fold]

SmolLM2-135M-Instruct (3 KV heads a layer), WikiText-2. `uniform` keeps the same share in every layer; `knapsack` spends the
bytes by losses measured on the calibration text. With 3 heads many methods agree: what was scored once is not
scored again. Results are kept in the scratch directory, so an interrupted run goes on.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from common import Table, all_layers, arguments, convert_in_memory, environment, plan_within
from gqakit.evaluation.language import score_language
from gqakit.grouping_methods import METHODS
from gqakit.models.load import load
from gqakit.planning.options import BudgetOptions, PlanOptions
from gqakit.planning.plan import Plan
from workbench import Workbench

RATIOS = {"2/3": 2 / 3, "1/2": 1 / 2, "1/3": 1 / 3}
MERGES = ("fold", "aligned", "mean")


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--stand-in", action="store_true", help="knapsack weighs the merge rule's error: quicker"
    )
    parser.add_argument("--method", action="append", help="grouping methods to measure (default: all)")
    parser.add_argument("--only", action="append", help="merge rules to measure (default: all three)")
    options = parser.parse_args()
    how: dict[str, Any] = {"layer_loss": "error"} if options.stand_in else {}
    weighs = "knapsack by error" if options.stand_in else "knapsack"
    bench = Scored(Workbench.on_smollm2(options.wikitext, options.work))
    print(environment())
    if not options.stand_in:
        table = Table("What knapsack weighs: fold, optimal", "weighs", "maps", "5/6", *RATIOS)
        for loss in ("measured", "error"):
            for maps in ("shared", "separate"):
                table.row(
                    loss,
                    maps,
                    *(
                        bench.cell(ratio, "optimal", "fold", "knapsack", maps, layer_loss=loss)
                        for ratio in (5 / 6, *RATIOS.values())
                    ),
                )
    for merge in options.only or MERGES:
        table = Table(
            f"Merge rule {merge}: perplexity (KL to the source)", "grouping", "allocation", "maps", *RATIOS
        )
        for method in options.method or sorted(METHODS, key=lambda name: (name != "optimal", name)):
            for allocation, maps in (
                ("uniform", "shared"), ("uniform", "separate"), ("knapsack", "shared"), ("knapsack", "separate"),
            ):  # fmt: skip
                cells = [
                    bench.cell(ratio, method, merge, allocation, maps, **how) for ratio in RATIOS.values()
                ]
                if any(cell != "-" for cell in cells):
                    table.row(method, weighs if allocation == "knapsack" else allocation, maps, *cells)


class Scored:
    """A workbench that scores a plan once."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.statistics = bench.statistics()
        self.windows = [bench.windows("test", 8, 512)]
        self.model = load(bench.source.path, dtype=torch.float32)
        self.layers = all_layers(bench.source, self.statistics)
        self.path = bench.work / "scores.json"
        self.scores: dict[str, str] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def cell(self, ratio: float, method: str, merge: str, allocation: str, maps: str, **how: Any) -> str:
        """One score; "-" where the method or the allocation does not reach the budget."""
        if (method == "mqa" and (allocation, ratio) != ("knapsack", 1 / 2) and ratio > 1 / 3) or (
            allocation == "uniform" and ratio == 1 / 2
        ):
            return "-"
        options = PlanOptions(method=method, merge=merge, allocation=allocation, kv_maps=maps, **how)
        planned = plan_within(
            self.bench.source,
            BudgetOptions(kv_ratio=ratio),
            options,
            self.statistics,
            lambda: self.bench.measurement(merge),
        )
        return self.score(planned.plan)

    def score(self, plan: Plan) -> str:
        """Perplexity and divergence of a plan, from memory where its groups and rule were scored before."""
        key = json.dumps([plan.merging.rule, [[layer.key, layer.value] for layer in plan.layers]])
        if key not in self.scores:
            convert_in_memory(self.model, self.layers, plan)
            score = score_language(self.model, self.windows[0], self.bench.reference)
            self.scores[key] = f"{score.perplexity:,.2f} ({score.kl:.3f})"
            self.path.write_text(json.dumps(self.scores))
        return self.scores[key]


if __name__ == "__main__":
    main()
