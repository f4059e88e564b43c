"""What can be asked of a plan: a budget, a method, constraints, and how losses are measured. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gqakit.core.merging import RULES
from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.grouping_methods import METHODS
from gqakit.models.engines import ENGINES
from gqakit.models.run_options import RUN, MemoryOptions, StackOptions
from gqakit.options import Options, option
from gqakit.planning.allocation import ALLOCATIONS

BUDGET = "Budget (give one)"
HOW = "How"
GROUPS = "Constraints on the groups"
LOSSES = "Losses of layers (for allocations that weigh them)"
SEARCH = "Search (of the method or the allocation that has the option)"

SPELLINGS = ("kv_ratio", "kv_heads", "kv_bytes_per_token", "kv_gib")


@dataclass(frozen=True)
class BudgetOptions(Options):
    """The spellings of a budget, an upper bound on the KV cache: at most one of them is given."""

    kv_ratio: float | None = option(
        None, "KV-cache bytes after / before, such as 0.5.", panel=BUDGET, above=0, at_most=1
    )
    kv_heads: int | None = option(
        None, "KV heads per layer, the same in every layer.", panel=BUDGET, at_least=1
    )
    kv_bytes_per_token: int | None = option(
        None, "Cache bytes per token, at the checkpoint's precision.", panel=BUDGET, at_least=1
    )
    kv_gib: float | None = option(
        None, "GiB for the whole cache, with a context and a batch.", panel=BUDGET, above=0
    )
    context: int | None = option(None, "Tokens per sequence, for the GiB.", panel=BUDGET, at_least=1)
    batch: int | None = option(None, "Sequences at a time, for the GiB (1).", panel=BUDGET, at_least=1)

    @property
    def has_budget(self) -> bool:
        """Whether any spelling is given."""
        return any(getattr(self, name) is not None for name in SPELLINGS)

    def problems(self) -> Iterator[str]:
        """More than one spelling, or a part of one without the rest."""
        yield from super().problems()
        given = [f"`{name}`" for name in SPELLINGS if getattr(self, name) is not None]
        if len(given) > 1:
            yield f"give one budget, not {' and '.join(given)}"
        if self.kv_gib is None and (self.context is not None or self.batch is not None):
            yield "`context` and `batch` belong to `kv_gib`"
        if self.kv_gib is not None and self.context is None:
            yield "`kv_gib` needs `context` (tokens per sequence)"


@dataclass(frozen=True)
class PlanOptions(StackOptions):
    """What a plan is made by, besides its budget."""

    method: str = option("optimal", "Which heads share.", panel=HOW, choices=METHODS)
    merge: str = option("fold", "How they become one head.", panel=HOW, choices=RULES)
    allocation: str = option(
        "auto", "How the budget is spent over the layers; auto: as suits method and format.",
        panel=HOW, choices=("auto", *ALLOCATIONS),
    )  # fmt: skip
    format: str = option(
        "auto", "uniform (any engine), grouped (any groups), or auto: uniform where the best groups allow it.",
        panel=HOW, choices=("auto", "uniform", "grouped"),
    )  # fmt: skip
    kv_maps: str = option(
        "shared", "One grouping for keys and values, or separate ones, budgeted apart (fewer engines).",
        panel=HOW, choices=("shared", "separate"),
    )  # fmt: skip
    engine: str | None = option(
        None, "Refuse what this engine cannot run.", panel=HOW, choices=tuple(ENGINES), flags=("--for",)
    )
    kv_cache: str = option(
        "f16", "Types of the cache, which count towards the budget: one, or of keys and of values, such as q8_0,q4_0; or "
        "auto: the best types and heads together that the engine has. See docs/kv-cache.md.", panel=HOW,
    )  # fmt: skip
    seed: int = option(0, "Of everything random.", panel=HOW, at_least=0)

    cardinality: str = option(
        "arbitrary",
        "Whether groups of a layer may differ in size.",
        panel=GROUPS,
        choices=("arbitrary", "equal"),
    )
    max_group_size: int | None = option(
        None, "The most query heads that share one KV head.", panel=GROUPS, at_least=1
    )
    kv_multiple_of: int = option(
        1,
        "Every layer keeps a multiple of this number of KV heads (tensor parallelism).",
        panel=GROUPS,
        at_least=1,
    )

    layer_loss: str = option(
        "auto", "What an allocation weighs: predicted from gradients, corrected by measuring a few near the optimum, all "
        "measured on the model, error of the merge rule, objective of the method; auto: the first of corrected, "
        "predicted, measured and error that statistics and data allow.",
        panel=LOSSES, choices=("auto", "predicted", "corrected", "measured", "error", "objective"),
    )  # fmt: skip

    population: int | None = option(None, "Candidates per generation (qcqa).", panel=SEARCH, expert=True)
    generations: int | None = option(None, "Generations (qcqa).", panel=SEARCH, expert=True)
    crossover: float | None = option(None, "Probability of crossover (qcqa).", panel=SEARCH, expert=True)
    mutation: float | None = option(
        None, "Probability of mutating one gene (qcqa).", panel=SEARCH, expert=True
    )
    symmetric: bool | None = option(
        None, "Swap heads, or move them one by one (asymgqa).",
        panel=SEARCH, expert=True, flags=("--symmetric/--asymmetric",),
    )  # fmt: skip
    similarity: str | None = option(
        None,
        "What heads are alike in (asymgqa).",
        panel=SEARCH,
        expert=True,
        choices=("activation", "weight"),
    )
    iterations: int | None = option(None, "Proposals, n (asymgqa).", panel=SEARCH, expert=True)
    neighbours: int | None = option(
        None, "A partner is one of this number of most similar heads, k (asymgqa).", panel=SEARCH, expert=True
    )
    p_accept: float | None = option(
        None, "Probability of taking a proposal that does not help (asymgqa).", panel=SEARCH, expert=True
    )
    p_reset: float | None = option(
        None, "Probability of going back to the best so far (asymgqa).", panel=SEARCH, expert=True
    )

    def problems(self) -> Iterator[str]:
        """Options that contradict each other."""
        yield from super().problems()
        if self.format == "uniform" and self.kv_maps == "separate":
            yield (
                "`format=uniform` has one map for keys and values; `kv_maps=separate` needs `format=grouped` (or auto)"
            )
        if self.kv_cache == "auto" and self.engine is None:
            yield "`kv_cache=auto` chooses among the types of an engine; name it with `engine`"

    @property
    def search(self) -> dict[str, Any]:
        """The options of a search that were given, for the method or the allocation that has them."""
        named = {
            each.name: getattr(self, each.name)
            for each in fields(PlanOptions)
            if each.metadata["panel"] == SEARCH
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def equal(self) -> bool:
        """Whether all groups of a layer must have the same size."""
        engine = ENGINES.get(self.engine or "")
        wanted = engine is not None and engine.equal_groups
        return self.format == "uniform" or self.cardinality == "equal" or wanted


@dataclass(frozen=True)
class LossOptions(MemoryOptions):
    """How the loss of converting one layer alone is measured."""

    measure_tokens: int = option(1536, "Most tokens to measure on.", panel=LOSSES, at_least=1)
    losses: Path | None = option(
        None,
        "File of measured losses; what it holds is not measured again. Named, losses are measured.",
        panel=LOSSES,
    )
    workers: int = option(
        1, "Processes that plan, convert and measure layers side by side; each holds a layer, or the model to measure.",
        panel=RUN, at_least=1,
    )  # fmt: skip


@dataclass(frozen=True)
class MakePlanOptions(BudgetOptions, PlanOptions, LossOptions, DataOptions):
    """Everything that `plan` takes: a budget, how to spend it, and what to measure losses on."""

    statistics: Path | None = option(
        None,
        "Calibration statistics made by `gqakit calibrate`; without them the weights alone decide.",
        panel=DATA,
    )
    window: int = option(WINDOW, "Tokens per window.", panel=DATA, at_least=2)

    @property
    def measurable(self) -> bool:
        """Whether losses may be measured: the model is run where statistics or data are given, or it is asked for."""
        given = self.statistics is not None or self.names_data or self.losses is not None
        return given or self.layer_loss in MEASURING


MEASURING = ("corrected", "measured")
"""The values of `layer_loss` for which the model is run."""


def may_predict(layer_loss: str, losses: Path | None) -> bool:
    """Whether losses may be predicted where that can be done: a file that keeps measured ones asks for these."""
    return losses is None or layer_loss != "auto"


PLAN_FIELDS = tuple(each.name for each in fields(PlanOptions))
"""What decides a plan besides budget, statistics and losses; refused beside a plan that is given."""
