"""`gqakit plan`, `gqakit plan show`, `gqakit plan diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gqakit.cli.console import Screen, interruptible
from gqakit.cli.flags import PlanFlags, takes_plan_flags
from gqakit.cli.options import (
    Audio,
    Dataset,
    DatasetColumn,
    DatasetSplit,
    Device,
    Images,
    ImageSize,
    Json,
    Model,
    Quiet,
    Samples,
    Text,
    Verbose,
    Window,
    data_source,
)

if TYPE_CHECKING:
    from gqakit.planning.plan import Plan


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
@takes_plan_flags
def make(
    model: Model,
    flags: PlanFlags,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The plan file to write.")] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(help="Also write the Pareto fronts of every layer and of the model, as JSON."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw these fronts, as an image.")] = None,
    text: Text = None,
    images: Images = None,
    audio: Audio = None,
    samples: Samples = None,
    image_size: ImageSize = None,
    dataset: Dataset = None,
    dataset_split: DatasetSplit = "train",
    dataset_column: DatasetColumn = "text",
    window: Window = 512,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a plan within a budget. Without --moments the weights alone decide.

    The model is run only where losses of layers are to be measured: with --layer-loss measured, --text, --dataset or
    --losses.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.planning.make import MeasureOptions, explore

    measure = None
    if flags.layer_loss == "measured" or text or dataset or images or audio or flags.losses:
        kept = output.with_name(output.stem + ".losses.jsonl") if output else None
        measure = MeasureOptions(
            data_source(
                text,
                dataset,
                dataset_split,
                dataset_column,
                "calibration",
                images,
                audio,
                samples,
                image_size,
            ),
            tokens=flags.measure_tokens,
            window=window,
            losses=flags.losses or kept,
            replace=flags.losses is None,
            workers=flags.workers,
            device=device,
        )
    kept = measure.losses if measure else None
    kept = f"; what was measured is kept in {kept}, the same command goes on" if kept else ""
    with interruptible(screen, kept):
        planned = explore(
            model,
            flags.budget(),
            flags.plan_options(),
            moments=flags.moments,
            measure=measure,
            whole_front=bool(pareto or plot),
            progress=screen.progress,
        )
    if pareto is not None:
        from gqakit.planning.front import save_front

        save_front(pareto, planned)
    if plot is not None:
        from gqakit.planning.front import plot_front

        plot_front(plot, planned)
    if output is not None:
        planned.plan.save(output)
    if as_json:
        print(planned.plan.to_json(), end="")
        return
    show_plan(screen, planned.plan)
    if flags.moments is None and flags.merge == "fold":
        screen.remark(
            "made from weights alone, which costs far more quality: give --moments from `gqakit calibrate`"
        )
    for what, path in (("plan", output), ("fronts", pareto), ("plot", plot)):
        if path is not None:
            screen.line(f"{what} written to {path}")


@app.command("show")
def show(plan: PlanFile, as_json: Json = False) -> None:
    """Print a plan: budget, every layer's groups, errors."""
    from gqakit.planning.plan import Plan

    screen = Screen(as_json=as_json)
    loaded = Plan.load(plan)
    if as_json:
        print(loaded.to_json(), end="")
    else:
        show_plan(screen, loaded)


@app.command("diff")
def diff(a: PlanFile, b: PlanFile, as_json: Json = False) -> None:
    """Print what differs between two plans; exit code 1 if anything does."""
    from gqakit.planning.plan import Plan, diff_plans

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
        (plan.sized, f"{budget.kv_bytes_per_token_before:,} → {budget.kv_bytes_per_token:,} bytes per token"),
        ("format", f"{plan.format}: {plan.engines}"),
        ("grouping", f"{plan.method}{_options(plan.method_options)}, seed {plan.seed}"),
        ("allocation", f"{plan.allocation}{_options(plan.allocation_options)}{_loss(plan)}"),
        *((("constraints", constraints),) if (constraints := _constraints(plan)) else ()),
        ("merge rule", f"{plan.merging.key} for keys, {plan.merging.value} for values"),
        (
            "moments",
            f"{plan.moments.tokens:,} tokens ({plan.moments.path})" if plan.moments else "none: weights only",
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


def _options(options: dict[str, Any]) -> str:
    given = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    return f" ({given})" if given else ""


def _loss(plan: Plan) -> str:
    what = {
        "none": "",
        "objective": ", weighing the method's objective",
        "error": ", weighing the merge rule's error",
        "measured": ", weighing measured losses",
    }
    return what[plan.layer_loss]


def _constraints(plan: Plan) -> str:
    asked = plan.constraints
    said = ["keys and values apart"] if asked.kv_maps == "separate" else []
    said += ["equal group sizes"] if asked.cardinality == "equal" else []
    said += [f"at most {asked.max_group_size} query heads a KV head"] if asked.max_group_size else []
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
