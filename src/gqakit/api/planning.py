"""`plan`: a budget in, a Plan out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint
from gqakit.core.capacity import Budget, resolve_budget
from gqakit.errors import BudgetError
from gqakit.families import ModelSpec
from gqakit.inspection import open_model
from gqakit.plan import Plan
from gqakit.planner import PlanOptions, make_plan
from gqakit.progress import Reporter, silent


@dataclass(frozen=True)
class BudgetOptions:
    """The spellings of a budget, exactly one of them given; see `gqakit.core.capacity.resolve_budget`."""

    kv_ratio: float | None = None
    kv_heads: int | None = None
    kv_bytes_per_token: int | None = None
    kv_gib: float | None = None
    context: int | None = None
    batch: int | None = None

    def resolve(self, spec: ModelSpec) -> Budget:
        """The budget for a model.

        Raises:
            BudgetError: when it is none, several, out of range, or less than one KV head a layer.
        """
        try:
            budget = resolve_budget(spec.cache, **asdict(self))
        except ValueError as error:
            raise BudgetError(str(error)) from error
        least = replace(spec.cache, key_heads=(1,) * spec.num_layers, value_heads=(1,) * spec.num_layers)
        smallest = least.ratio_to(spec.cache)
        if budget.kv_ratio < smallest * (1 - 1e-6):
            raise BudgetError(
                f"{budget.asked} is a kv_ratio of {budget.kv_ratio:.4g}; the smallest that can be met is "
                f"{smallest:.4f}, {least.bytes_per_token} bytes per token (one KV head a layer)"
            )
        return budget


def plan(
    model: str,
    budget: BudgetOptions,
    options: PlanOptions | None = None,
    *,
    moments: Path | None = None,
    progress: Reporter = silent,
) -> Plan:
    """Decide which heads share and how, within a budget. Without moments the weights alone decide.

    Reads headers and one layer's attention tensors at a time.

    Raises:
        BudgetError, PlanError, UsageError, CheckpointError, FamilyError.
    """
    source, spec = open_model(model)
    opened = MomentsFile.open(moments) if moments else None
    return plan_opened(source, spec, model, budget, options or PlanOptions(), opened, progress)


def plan_opened(
    source: Checkpoint,
    spec: ModelSpec,
    name: str,
    budget: BudgetOptions,
    options: PlanOptions,
    moments: MomentsFile | None,
    progress: Reporter,
) -> Plan:
    """`plan` for a checkpoint that is open already."""
    resolved = budget.resolve(spec)
    with progress("plan", spec.num_layers, "layers") as advance:
        return make_plan(
            source, spec, resolved, options, moments, name=Path(name).name, progress=lambda: advance(1)
        )
