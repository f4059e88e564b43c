"""The options that decide a plan, written once for the commands that make one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gqakit.cli.option_fields import takes_fields
from gqakit.cli.options import (
    Batch,
    Context,
    KvBytesPerToken,
    KvGib,
    KvHeads,
    KvRatio,
    Moments,
    Seed,
    Stacks,
    names_of,
)

if TYPE_CHECKING:
    from gqakit.planning.make import BudgetOptions, PlanOptions

_HOW = "How"
_SHAPE = "Constraints on the groups"
_LAYERS = "Losses of layers (for allocations that weigh them)"
_SEARCH = "Search (of the method or the allocation that has the option; defaults in docs/methods.md)"


def _option(panel: str, help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=panel)


@dataclass(frozen=True)
class PlanFlags:
    """Every option that has a say in a plan. None stands for the default of whatever has the option."""

    kv_ratio: KvRatio = None
    kv_heads: KvHeads = None
    kv_bytes_per_token: KvBytesPerToken = None
    kv_gib: KvGib = None
    context: Context = None
    batch: Batch = None

    method: Annotated[str, _option(_HOW, "Which heads share; see `gqakit methods`.")] = "optimal"
    merge: Annotated[str, _option(_HOW, "How they become one head; see `gqakit methods`.")] = "fold"
    allocation: Annotated[
        str,
        _option(
            _HOW,
            "How the budget is spent over the layers; auto: as suits the method, uniform for format uniform.",
        ),
    ] = "auto"
    format: Annotated[
        str,
        _option(
            _HOW,
            "uniform (any engine), grouped (any groups), or auto: uniform where the best groups allow it.",
        ),
    ] = "auto"
    kv_maps: Annotated[
        str, _option(_HOW, "shared, or separate: keys and values grouped and budgeted apart (fewer engines).")
    ] = "shared"
    stacks: Stacks = None
    seed: Seed = 0
    engine: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Refuse what this engine cannot run: transformers, llama.cpp, vllm, sglang or onnx.",
            rich_help_panel=_HOW,
        ),
    ] = None

    cardinality: Annotated[
        str, _option(_SHAPE, "arbitrary, or equal: all groups of a layer have the same size.")
    ] = "arbitrary"
    max_group_size: Annotated[
        int | None, _option(_SHAPE, "At most so many query heads read one KV head.")
    ] = None
    kv_multiple_of: Annotated[
        int, _option(_SHAPE, "Every layer keeps a multiple of so many KV heads (tensor parallelism).")
    ] = 1

    layer_loss: Annotated[
        str,
        _option(
            _LAYERS,
            "measured on the model, error of the merge rule, objective of the method, or auto: measured where the model "
            "is run anyway.",
        ),
    ] = "auto"
    measure_tokens: Annotated[int, _option(_LAYERS, "Measure on at most so many tokens.")] = 1536
    losses: Annotated[
        Path | None, _option(_LAYERS, "File of measured losses; what it holds is not measured again.")
    ] = None
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that measure, each with the model.", rich_help_panel=_LAYERS)
    ] = 1

    population: Annotated[
        int | None, _option(_SEARCH, "Candidates in each generation (qcqa, qcqa_layers).")
    ] = None
    generations: Annotated[int | None, _option(_SEARCH, "Generations (qcqa, qcqa_layers).")] = None
    crossover: Annotated[float | None, _option(_SEARCH, "Probability of crossover (qcqa, qcqa_layers).")] = (
        None
    )
    mutation: Annotated[
        float | None, _option(_SEARCH, "Probability of mutating one gene (qcqa, qcqa_layers).")
    ] = None
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Swap heads, or move them one by one (asymgqa).",
            rich_help_panel=_SEARCH,
        ),
    ] = None
    similarity: Annotated[
        str | None, _option(_SEARCH, "activation or weight: what heads are alike in (asymgqa).")
    ] = None
    iterations: Annotated[int | None, _option(_SEARCH, "Proposals, n (asymgqa).")] = None
    neighbours: Annotated[
        int | None, _option(_SEARCH, "A partner is one of so many most similar heads, k (asymgqa).")
    ] = None
    p_accept: Annotated[
        float | None, _option(_SEARCH, "Probability of taking a proposal that does not help (asymgqa).")
    ] = None
    p_reset: Annotated[
        float | None, _option(_SEARCH, "Probability of going back to the best so far (asymgqa).")
    ] = None

    moments: Moments = None

    def budget(self) -> BudgetOptions:
        """The budget that is asked for."""
        from gqakit.planning.make import BudgetOptions

        return BudgetOptions(
            self.kv_ratio, self.kv_heads, self.kv_bytes_per_token, self.kv_gib, self.context, self.batch
        )

    def has_budget(self) -> bool:
        """Whether any is."""
        return any(value is not None for value in vars(self.budget()).values())

    def plan_options(self) -> PlanOptions:
        """Everything else, with each search option given to whatever has it.

        Raises:
            UsageError: for unknown names, values out of range, and a search option that nothing here has.
        """
        from gqakit.errors import UsageError
        from gqakit.planning.make import PlanOptions

        names = (
            "method", "merge", "allocation", "format", "seed", "kv_maps", "cardinality", "max_group_size",
            "kv_multiple_of", "layer_loss", "engine",
        )  # fmt: skip
        options = PlanOptions(**{name: getattr(self, name) for name in names})
        given = {name: getattr(self, name) for name in SEARCH if getattr(self, name) is not None}
        method, allocation = (
            options.grouping_method.options(),
            options.allocation_for(None, measurable=True).options(),
        )
        for name in given:
            if name not in method and name not in allocation:
                raise UsageError(
                    f"--{name.replace('_', '-')} is no option of method {options.method} (which has "
                    f"{', '.join(method) or 'none'}) nor of its allocation (which has {', '.join(allocation) or 'none'})"
                )
        return PlanOptions(
            **{name: getattr(self, name) for name in names},
            stacks=names_of(self.stacks),
            method_options={name: value for name, value in given.items() if name in method},
            allocation_options={name: value for name, value in given.items() if name in allocation},
        )


SEARCH = (
    "population", "generations", "crossover", "mutation", "symmetric", "similarity", "iterations",
    "neighbours", "p_accept", "p_reset",
)  # fmt: skip
DECIDES = (
    "method", "merge", "allocation", "format", "seed", "kv_maps", "cardinality", "max_group_size", "kv_multiple_of",
    "layer_loss", "losses", "stacks", *SEARCH,
)  # fmt: skip


takes_plan_flags = takes_fields(PlanFlags, "flags")
"""Gives a command all of `PlanFlags` as options of its own; it gets them as one argument, `flags`."""
