"""`gqakit plan`, `gqakit plan show`, `gqakit plan diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gqakit.cli.console import Screen
from gqakit.cli.options import (
    Allocation,
    Batch,
    Context,
    Format,
    Json,
    KvBytesPerToken,
    KvGib,
    KvHeads,
    KvRatio,
    Merge,
    Method,
    Model,
    Moments,
    Quiet,
    Seed,
    Verbose,
)

if TYPE_CHECKING:
    from gqakit.plan import Plan


class _MakeByDefault(TyperGroup):
    """`gqakit plan MODEL …` is `gqakit plan make MODEL …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_MakeByDefault,
    no_args_is_help=True,
    help="Decide which heads share and how: `gqakit plan MODEL --kv-ratio R -o plan.json` (see `gqakit plan make "
    "--help`). `show` and `diff` read plans.",
)

PlanFile = Annotated[Path, typer.Argument(help="A plan file.", show_default=False)]


@app.command("make")
def make(
    model: Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The plan file to write.")] = None,
    kv_ratio: KvRatio = None,
    kv_heads: KvHeads = None,
    kv_bytes_per_token: KvBytesPerToken = None,
    kv_gib: KvGib = None,
    context: Context = None,
    batch: Batch = None,
    method: Method = "optimal",
    merge: Merge = "fold",
    allocation: Allocation = "uniform",
    format: Format = "auto",
    moments: Moments = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a plan within a budget. Without --moments the weights alone decide."""
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.api import BudgetOptions, PlanOptions, plan

    options = PlanOptions(method, merge, allocation, format, seed)  # pyright: ignore[reportArgumentType]
    budget = BudgetOptions(kv_ratio, kv_heads, kv_bytes_per_token, kv_gib, context, batch)
    made = plan(model, budget, options, moments=moments, progress=screen.progress)
    if output is not None:
        made.save(output)
    if as_json:
        print(made.to_json(), end="")
        return
    show_plan(screen, made)
    if moments is None:
        screen.remark(
            "made from weights alone, which costs far more quality: give --moments from `gqakit calibrate`"
        )
    if output is not None:
        screen.line(f"plan written to {output}")


@app.command("show")
def show(plan: PlanFile, as_json: Json = False) -> None:
    """Print a plan: budget, every layer's groups, errors."""
    from gqakit.plan import Plan

    screen = Screen(as_json=as_json)
    loaded = Plan.load(plan)
    if as_json:
        print(loaded.to_json(), end="")
    else:
        show_plan(screen, loaded)


@app.command("diff")
def diff(a: PlanFile, b: PlanFile, as_json: Json = False) -> None:
    """Print what differs between two plans; exit code 1 if anything does."""
    from gqakit.plan import Plan, diff_plans

    screen = Screen(as_json=as_json)
    differences = list(diff_plans(Plan.load(a), Plan.load(b)))
    if as_json:
        screen.json([{"field": field, "a": one, "b": two} for field, one, two in differences])
    elif differences:
        screen.table(f"{a} against {b}", ("field", "a", "b"), differences)
    else:
        screen.line("the plans are the same")
    if differences:
        raise typer.Exit(1)


def show_plan(screen: Screen, plan: Plan) -> None:
    """A plan as tables."""
    budget = plan.budget
    short = "" if budget.kv_ratio > 0.995 * budget.kv_ratio_asked else " (the most whole heads allow)"
    rows = [
        ("source", f"{plan.source.name} ({plan.source.model_type}, {plan.source.num_layers} layers)"),
        (
            "budget",
            f"{budget.asked}: kv_ratio {budget.kv_ratio_asked:.4g} asked, {budget.kv_ratio:.4g} reached{short}",
        ),
        ("KV cache", f"{budget.kv_bytes_per_token_before:,} → {budget.kv_bytes_per_token:,} bytes per token"),
        ("format", plan.format),
        ("grouping", f"{plan.method}, allocation {plan.allocation}, seed {plan.seed}"),
        ("merge rule", f"{plan.merging.key} for keys, {plan.merging.value} for values"),
        (
            "moments",
            f"{plan.moments.tokens:,} tokens ({plan.moments.path})" if plan.moments else "none: weights only",
        ),
        *(("note", note) for note in plan.notes),
    ]
    screen.table("Plan", ("", ""), rows)
    screen.table(
        "Layers (errors are relative to losing all heads)",
        ("layer", "KV heads", "groups", "key error", "value error"),
        [
            (
                str(index),
                _counts(layer.grouping),
                _groups(layer.grouping),
                f"{layer.key_error:.3g}",
                f"{layer.value_error:.3g}",
            )
            for index, layer in enumerate(plan.layers)
        ],
    )


def _counts(grouping: Any) -> str:
    key, value = grouping.key.num_groups, grouping.value.num_groups
    return str(key) if grouping.is_shared else f"K {key}, V {value}"


def _groups(grouping: Any) -> str:
    def one(partition: Any) -> str:
        return " ".join("{" + ",".join(map(str, group)) + "}" for group in partition.groups)

    return one(grouping.key) if grouping.is_shared else f"K {one(grouping.key)}  V {one(grouping.value)}"
