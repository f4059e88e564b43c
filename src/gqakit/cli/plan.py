"""`gqakit plan`, `gqakit plan show`, `gqakit plan diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.planning.options import MakePlanOptions

if TYPE_CHECKING:
    from gqakit.planning.plan import Plan


class _MakeByDefault(TyperGroup):
    """`gqakit plan MODEL …` makes a plan; `show` and `diff` are commands of their own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["make", *(args or ["--help"])]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        return ("" if name == "make" else name), found, rest  # so that usage reads `gqakit plan MODEL`


app = typer.Typer(
    cls=_MakeByDefault,
    help="Decide which heads share and how; show a plan, or compare two.",
    rich_markup_mode="rich",
)

PlanFile = Annotated[Path, typer.Argument(help="A plan file.", show_default=False)]
_FILES = "Output"


@command(
    MakePlanOptions,
    examples=(
        "plan MODEL --kv-ratio 0.5 --statistics statistics.safetensors --text my.txt -o plan.json",
        "plan MODEL --method qcqa --merge mean --kv-ratio 0.5 --plot front.png",
        "plan show plan.json        (and: plan diff ONE TWO)",
    ),
    resumes="what was measured is kept, and the same command goes on",
)
def make(
    screen: Screen,
    model: Model,
    options: MakePlanOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The plan file to write.", rich_help_panel=_FILES)
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(
            help="Also write the Pareto fronts of layers and model, as JSON.", rich_help_panel=_FILES
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw these fronts, as an image.", rich_help_panel=_FILES)
    ] = None,
) -> None:
    """Decide which heads share and how, within a budget. Without statistics the weights alone decide.

    The model is run only where losses of layers are measured: with statistics or data, unless the layer loss `error` or the
    allocation `uniform` makes that needless.
    """
    from gqakit.planning.make import explore

    keep = output.with_name(output.stem + ".losses.jsonl") if output else None
    planned = explore(model, options, screen.progress, whole_front=bool(pareto or plot), keep=keep)
    if output is not None:
        planned.plan.save(output)
    if screen.as_json:
        print(planned.plan.to_json(), end="")
    else:
        show_plan(screen, planned.plan)
    if pareto is not None:
        from gqakit.planning.front import save_front

        save_front(pareto, planned)
    if options.statistics is None and options.merge == "fold":
        screen.remark(
            "made from weights alone, which costs far more quality: give --statistics from `gqakit calibrate`"
        )
    written = [(what, path) for what, path in (("plan", output), ("fronts", pareto)) if path is not None]
    if plot is not None:  # last: without matplotlib everything else is there
        from gqakit.planning.front import plot_front

        plot_front(plot, planned)
        written.append(("plot", plot))
    for what, path in written:
        screen.remark(f"{what} written to {path}")


@command(None, examples=("plan show plan.json",))
def show(screen: Screen, plan: PlanFile) -> None:
    """Print a plan: budget, every layer's groups, errors."""
    from gqakit.planning.plan import Plan

    loaded = Plan.load(plan)
    if screen.as_json:
        print(loaded.to_json(), end="")
    else:
        show_plan(screen, loaded)


@command(None, examples=("plan diff one.json two.json",))
def diff(screen: Screen, a: PlanFile, b: PlanFile) -> None:
    """Print what differs between two plans; exit code 1 if anything does."""
    from gqakit.planning.plan import Plan, diff_plans

    differences = list(diff_plans(Plan.load(a), Plan.load(b)))
    if screen.as_json:
        screen.json([{"field": field, "a": one, "b": two} for field, one, two in differences])
    elif differences:
        screen.table(f"{a} against {b}", ("field", "a", "b"), differences)
    else:
        screen.line("the plans are the same")
    if differences:
        raise typer.Exit(1)


app.command("make")(make)
app.command("show")(show)
app.command("diff")(diff)


def show_plan(screen: Screen, plan: Plan) -> None:
    """A plan as tables."""
    rows = [
        ("source", f"{plan.source.name} ({plan.source.model_type}, {plan.source.num_layers} layers)"),
        ("budget", _budget(plan)),
        (
            plan.sized,
            f"{plan.budget.kv_bytes_per_token_before:,} → {plan.budget.kv_bytes_per_token:,} bytes per token",
        ),
        *((("types of the cache", plan.cache.in_words),) if plan.cache is not None else ()),
        ("format", f"{plan.format}: {plan.engines}"),
        ("grouping", f"{plan.method}{_options(plan.method_options)}, seed {plan.seed}"),
        ("allocation", f"{plan.allocation}{_options(plan.allocation_options)}{_LOSS[plan.layer_loss]}"),
        *((("parallel", parallel),) if (parallel := _parallel(plan)) else ()),
        *((("constraints", constraints),) if (constraints := _constraints(plan)) else ()),
        ("merge rule", f"{plan.merging.key} for keys, {plan.merging.value} for values"),
        (
            "statistics",
            f"{plan.calibrated_on} ({plan.moments.path})" if plan.moments else "none: weights only",
        ),
        *((("optimality", optimality),) if (optimality := _optimality(plan)) else ()),
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


def _budget(plan: Plan) -> str:
    budget = plan.budget
    text = f"kv_ratio {budget.kv_ratio_asked:.4g} asked, {budget.kv_ratio:.4g} reached"
    if not budget.asked.startswith("kv_ratio"):
        text = f"{budget.asked}: {text}"
    if budget.kv_ratio > 0.995 * budget.kv_ratio_asked:
        return text
    if plan.allocation == "uniform":
        return (
            text
            + " (the most that the same number of heads in every layer allows; --allocation knapsack comes nearer)"
        )
    return text + " (the most that whole heads allow)"


def _options(options: dict[str, Any]) -> str:
    given = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    return f" ({given})" if given else ""


_LOSS = {
    "none": "",
    "objective": ", weighing the method's objective",
    "error": ", weighing the merge rule's error",
    "predicted": ", weighing predicted losses",
    "corrected": ", weighing predicted losses, corrected by measuring some",
    "measured": ", weighing measured losses",
}


def _parallel(plan: Plan) -> str:
    """What tensor parallelism makes of the plan, where engines that cut heads over devices run it."""
    if plan.sized != "KV cache" or plan.engines.startswith("transformers"):
        return ""
    most = plan.most_parallel
    cut = f"heads divide over {most} devices" if most > 1 else "heads divide over no number of devices"
    return (
        f"{cut}; on more, engines repeat KV heads and the cache grows again: `--kv-multiple-of N` plans for N"
    )


def _constraints(plan: Plan) -> str:
    asked = plan.constraints
    said = ["keys and values apart"] if asked.kv_maps == "separate" else []
    said += ["equal group sizes"] if asked.cardinality == "equal" else []
    said += [f"at most {asked.max_group_size} query heads per KV head"] if asked.max_group_size else []
    said += [f"KV heads a multiple of {asked.kv_multiple_of}"] if asked.kv_multiple_of > 1 else []
    return ", ".join(said)


def _optimality(plan: Plan) -> str:
    gaps = [layer.gap for layer in plan.layers]
    if any(gap is None for gap in gaps):
        return ""
    worst = max(gap for gap in gaps if gap is not None)
    if worst == 0:
        return "every layer's grouping is certain to have the least error for its number of heads"
    return (
        f"a better grouping could save at most {worst:.0%} of a layer's error "
        f"(layer {gaps.index(worst)}; distance to a proven lower bound)"
    )


def _counts(grouping: Any) -> str:
    key, value = grouping.key.num_groups, grouping.value.num_groups
    return str(key) if grouping.is_shared else f"K {key}, V {value}"


def _groups(grouping: Any) -> str:
    def one(partition: Any) -> str:
        return " ".join("{" + ",".join(map(str, group)) + "}" for group in partition.groups)

    return one(grouping.key) if grouping.is_shared else f"K {one(grouping.key)}  V {one(grouping.value)}"
