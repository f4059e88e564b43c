"""Questions with several answers: SmolLM2 and its conversions by each way, at equal bytes, with standard errors.

    python benchmarks/tasks.py [--arc-easy 160] [--others 30] [--no-repair]

ARC-Easy, ARC-Challenge and OpenBookQA, scored by lm-eval through gqakit. At 2/3 and 1/3 every layer keeps 2 or 1 of 3 KV
heads, with one grouping for keys and values; 3/4 and 1/2 are spent by `knapsack` on predicted losses, keys and values apart.
What comes out the same is scored once, and what is scored is kept in the scratch directory: an interrupted run goes on,
after scoring the original again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import Kept, Table, arguments, calibrated, environment
from gqakit.calibration.store import StatisticsFile
from gqakit.comparison.ways import NAMED
from gqakit.conversion.convert import convert_checkpoint
from gqakit.evaluation.options import EvaluateOptions
from gqakit.evaluation.task_scores import TaskScore
from gqakit.evaluation.tasks import TaskScoring
from gqakit.models.running import load_model
from gqakit.models.source import Source
from gqakit.planning.layer_loss.predict import Prediction
from gqakit.planning.options import BudgetOptions, PlanOptions
from gqakit.planning.plan import Plan
from gqakit.planning.planner import make_plan
from gqakit.planning.request import Request
from gqakit.progress import silent
from gqakit.recovery.repair.options import RepairOptions
from gqakit.recovery.repair.repair import repair
from zoo import SMOLLM2, fetch

QUESTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "multiple-choice"
FILES = {
    "ARC-Easy": "arc-easy-dev.jsonl",
    "ARC-Challenge": "arc-challenge-dev.jsonl",
    "OpenBookQA": "openbookqa-test.jsonl",
}
UNIFORM: dict[str, Any] = {"allocation": "uniform", "kv_maps": "shared"}
APART: dict[str, Any] = {"allocation": "knapsack", "kv_maps": "separate", "layer_loss": "predicted"}
BUDGETS: dict[str, tuple[BudgetOptions, dict[str, Any]]] = {
    "3/4": (BudgetOptions(kv_ratio=3 / 4), APART),
    "2/3": (BudgetOptions(kv_heads=2), UNIFORM),
    "1/2": (BudgetOptions(kv_ratio=1 / 2), APART),
    "1/3": (BudgetOptions(kv_heads=1), UNIFORM),
}
FIRST = ("2/3", "1/3", "1/2", "3/4")
"""The order of work, for a run that ends early."""
REPAIRED = "fold, repaired"


def main() -> None:
    """Score and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="directory with the .jsonl files")
    parser.add_argument("--arc-easy", type=int, default=160, help="questions of ARC-Easy")
    parser.add_argument("--others", type=int, default=30, help="questions of each of the others")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens to calibrate on")
    parser.add_argument("--repair-tokens", type=int, default=4096, help="tokens to repair on")
    parser.add_argument("--repair-steps", type=int, default=40, help="steps of repair per layer")
    parser.add_argument("--no-repair", action="store_true", help="leave out what is repaired")
    parser.add_argument("--only-print", action="store_true", help="what is scored so far")
    parser.add_argument("--dtype", default="bfloat16", help="precision to score in")
    given = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    given.work.mkdir(parents=True, exist_ok=True)
    counts = {name: given.arc_easy if name == "ARC-Easy" else given.others for name in FILES}
    settings = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
    print(f"{environment()}\n{settings}", flush=True)
    bench = Bench.on(given, {name: _first(given, name, count) for name, count in counts.items()})
    if not given.only_print:
        bench.original()
    for kept in () if given.only_print else FIRST:
        for name in NAMED:
            bench.converted(kept, name)
        if not given.no_repair:
            bench.repaired(kept)
    for name in FILES:
        table = Table(
            f"{name}, {counts[name]} questions",
            *("KV kept", "conversion", "acc", "less the original's", "acc_norm", "less the original's"),
        )
        for row in bench.rows():
            table.row(*row.labels, *row.cells(name))


def _first(given: Any, name: str, count: int) -> Path:
    """A file with the first questions of a task."""
    lines = (given.questions / FILES[name]).read_text(encoding="utf-8").splitlines(keepends=True)
    path = given.work / f"{name}-{count}.jsonl"
    path.write_text("".join(lines[:count]), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Row:
    """One scored checkpoint."""

    labels: tuple[str, str]
    scores: list[dict[str, Any]]

    def cells(self, task: str) -> Iterator[str]:
        """Its scores on a task, each with the difference from the original's on the same questions."""
        for metric in ("acc", "acc_norm"):
            for each in self.scores:
                if each["task"].startswith(f"{task}-") and each["metric"] == metric:
                    yield from TaskScore(**each).cells()[1:]


@dataclass
class Bench:
    """The source with its statistics, and what was scored so far."""

    given: Any
    source: Source
    statistics: StatisticsFile
    scoring: TaskScoring
    scores: Kept

    @classmethod
    def on(cls, given: Any, files: dict[str, Path]) -> Bench:
        """Calibrated, with the tasks loaded."""
        source = Source.open(fetch(SMOLLM2))
        statistics = calibrated(
            source.path,
            given.work / f"statistics-gradients-{given.tokens}.safetensors",
            text=given.wikitext / "valid.txt",
            tokens=given.tokens,
        )
        asked = EvaluateOptions(tasks=tuple(map(str, files.values())), batch_size=16)
        scoring = TaskScoring.of(source, (), asked, silent)
        file = given.work / f"tasks-{given.arc_easy}-{given.others}-{given.tokens}-{given.dtype}.json"
        return cls(given, source, statistics, scoring, Kept(file))

    def original(self) -> None:
        """Score the source, which all others are compared with."""
        self._score("original", self.source.path)

    def converted(self, kept: str, way: str) -> None:
        """Score one conversion, unless another way came to the same."""
        plan = self._plan(kept, way)
        if (key := _key(plan)) not in self.scores:
            out = self.given.work / "tasks-candidate"
            shutil.rmtree(out, ignore_errors=True)
            convert_checkpoint(self.source, plan, self.statistics, out, "")
            self._score(key, out)
        self._is(f"{kept} {way}", key)

    def repaired(self, kept: str) -> None:
        """Score fold's conversion after a short repair."""
        given = self.given
        key = f"repaired {given.repair_tokens} {given.repair_steps} {_key(self._plan(kept, 'fold'))}"
        if key not in self.scores:
            out, fixed = given.work / "tasks-candidate", given.work / "tasks-repaired"
            for each in (out, fixed):
                shutil.rmtree(each, ignore_errors=True)
            convert_checkpoint(self.source, self._plan(kept, "fold"), self.statistics, out, "")
            options = RepairOptions(
                source=str(self.source.path), text=given.wikitext / "valid.txt", tokens=given.repair_tokens,
                steps=given.repair_steps, evaluate=False,
            )  # fmt: skip
            repair(out, fixed, options=options, progress=False)
            self._score(key, fixed)
        self._is(f"{kept} {REPAIRED}", key)

    def rows(self) -> Iterator[Row]:
        """What is scored, by budget."""
        yield Row(("1", "original"), self.scores["original"])
        for kept in BUDGETS:
            for way in (*NAMED, REPAIRED):
                if (label := f"{kept} {way}") in self.scores:
                    yield Row((kept, way), self.scores[label])

    def _plan(self, kept: str, way: str) -> Plan:
        budget, how = BUDGETS[kept]
        method, merge = NAMED[way]
        options = PlanOptions(method=method, merge=merge, format="grouped", **how)
        request = Request.check(self.source.spec, budget, options, predictable=True)
        predicted = Prediction(self.statistics, merge)
        return make_plan(self.source, request, self.statistics, measure=predicted).plan

    def _score(self, key: str, path: Path) -> None:
        model = load_model(Source.open(path).checkpoint, self.given.dtype)
        self.scores[key] = [asdict(each) for each in self.scoring.scores(model, key)]

    def _is(self, label: str, key: str) -> None:
        self.scores[label] = self.scores[key]
        print(f"scored {label}", flush=True)


def _key(plan: Plan) -> str:
    return json.dumps([plan.merging.rule, [[layer.key, layer.value] for layer in plan.layers]])


if __name__ == "__main__":
    main()
