"""Options of `convert` and `verify`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gqakit.calibration.options import TOKENS
from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.evaluation.options import EvaluateOptions
from gqakit.models.run_options import REPORT, UPLOAD, MemoryOptions, SpaceOptions
from gqakit.options import option
from gqakit.planning.options import PLAN_FIELDS, BudgetOptions, LossOptions, PlanOptions

AFTER = "Afterwards"
OUTPUT = "Output"


@dataclass(frozen=True)
class ConvertOptions(BudgetOptions, PlanOptions, LossOptions, DataOptions):
    """Everything that `convert` takes: a plan to carry out, or a budget and how to spend it; data; what to do afterwards."""

    plan: Any = option(None, "Carry out this plan file in place of making a plan.", panel="Plan")
    statistics: Path | None = option(
        None, "Calibration statistics made by `gqakit calibrate`, in place of a calibration.", panel=DATA
    )
    tokens: int = option(TOKENS, "Most tokens to calibrate on, in whole windows.", panel=DATA, at_least=1)
    window: int = option(WINDOW, "Tokens per window.", panel=DATA, at_least=2)

    repair: bool = option(
        False, "Then fit the converted attention layer by layer to the source's on the data; see `gqakit repair`.",
        panel=AFTER,
    )  # fmt: skip
    repair_tokens: int = option(32768, "Most tokens to repair on.", panel=AFTER, at_least=1)
    repair_steps: int = option(160, "Steps of repair per layer.", panel=AFTER, at_least=1)
    evaluate: bool | None = option(
        None, "Measure the loss and state it in the model card. Default: where the model is calibrated anyway.",
        panel=AFTER,
    )  # fmt: skip
    evaluate_text: Any = option(
        None,
        "Text to measure on; may be repeated. Default: the held-out text that comes with gqakit.",
        panel=AFTER,
        many=True,
    )

    dry_run: bool = option(False, "Check and decide everything, write no checkpoint.", panel=OUTPUT)
    overwrite: bool = option(False, "Replace a checkpoint in the output directory.", panel=OUTPUT)
    push_to_hub: str | None = option(None, UPLOAD, panel=OUTPUT)
    report: Path | None = option(None, REPORT, panel=OUTPUT)

    @property
    def scoring(self) -> EvaluateOptions:
        """How to measure: a long calibration window need not fit the held-out text."""
        return EvaluateOptions(window=min(self.window, WINDOW), **self.running)

    @property
    def running(self) -> dict[str, Any]:
        """How the model is run, whatever for."""
        return asdict(self.part(MemoryOptions))

    def problems(self) -> Iterator[str]:
        """A plan has decided already: options that would decide are refused, not ignored."""
        yield from super().problems()
        if self.plan is None:
            if not self.has_budget:
                yield "give a budget (`kv_ratio` or another), or a plan to carry out (`plan`)"
            return
        if self.has_budget:
            yield "give either a plan (`plan`) or a budget (`kv_ratio` or another), not both"
        defaults = {each.name: each.default for each in fields(self)}
        decides = [n for n in (*PLAN_FIELDS, "losses") if n != "engine" and getattr(self, n) != defaults[n]]
        if decides:
            listed = ", ".join(f"`{name}`" for name in decides)
            yield f"{listed} cannot change the plan {_called(self.plan)}; make another with `gqakit plan`"


def _called(plan: Any) -> str:
    return str(plan) if isinstance(plan, str | Path) else "that is given"


@dataclass(frozen=True)
class VerifyOptions(DataOptions, SpaceOptions):
    """What goes through both models: the first window, images or recording of the data."""

    window: int = option(128, "Tokens of the window.", panel=DATA, at_least=2)
