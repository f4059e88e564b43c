"""`gqakit convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqakit.cli.console import Screen, interruptible
from gqakit.cli.flags import DECIDES, PlanFlags, takes_plan_flags
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
    Tokens,
    Verbose,
    Window,
    data_source,
)
from gqakit.errors import UsageError


@takes_plan_flags
def command(
    ctx: typer.Context,
    model: Model,
    flags: PlanFlags,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The directory to write.", show_default=False)
    ],
    plan: Annotated[
        Path | None, typer.Option(help="Carry out this plan instead of making one.", show_default=False)
    ] = None,
    text: Text = None,
    images: Images = None,
    audio: Audio = None,
    samples: Samples = None,
    image_size: ImageSize = None,
    dataset: Dataset = None,
    dataset_split: DatasetSplit = "train",
    dataset_column: DatasetColumn = "text",
    tokens: Tokens = 12288,
    window: Window = 512,
    device: Device = "auto",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Then fit the converted attention layer by layer to the source's on the text; see `gqakit repair`.",
        ),
    ] = False,
    repair_tokens: Annotated[int, typer.Option(help="For --repair: at most so many tokens.")] = 32768,
    repair_steps: Annotated[int, typer.Option(help="For --repair: steps in each layer.")] = 160,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            help="Measure the loss and state it in the model card. Default: where the model is calibrated anyway."
        ),
    ] = None,
    evaluate_text: Annotated[
        list[str] | None,
        typer.Option(help="Text to measure on. Default: the held-out text that comes with gqakit."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and decide everything, write no checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint in the output directory.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a checkpoint with a smaller KV cache: calibrate, plan and convert, or carry out a plan.

    Interrupted, the same command goes on where it stopped.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.pipeline import convert
    from gqakit.planning.make import MeasureOptions
    from gqakit.planning.plan import Plan
    from gqakit.recovery.repair.options import FitOptions

    _refuse_beside_plan(ctx, plan)
    content = data_source(
        text, dataset, dataset_split, dataset_column, "calibration", images, audio, samples, image_size
    )
    measure = MeasureOptions(
        content,
        tokens=min(flags.measure_tokens, tokens),
        window=window,
        losses=flags.losses or output.parent / f"{output.name}.losses.jsonl",
        replace=flags.losses is None,
        workers=flags.workers,
        device=device,
    )
    asked = flags.moments is None or flags.layer_loss == "measured" or flags.losses
    with interruptible(screen, f"; the same command goes on where it stopped ({output})"):
        result = convert(
            model,
            output,
            plan=Plan.load(plan) if plan else None,
            budget=flags.budget() if flags.has_budget() or plan is None else None,
            options=flags.plan_options(),
            moments=flags.moments,
            layer_losses=measure if asked else None,
            text=content,
            measure=True if evaluate_text else evaluate,
            evaluate_on=evaluate_text or None,
            tokens=tokens,
            window=window,
            device=device,
            repair=FitOptions(tokens=repair_tokens, window=window, steps=repair_steps) if repair else None,
            dry_run=dry_run,
            overwrite=overwrite,
            progress=screen.progress,
        )
    if as_json:
        screen.json(result)
        return
    made = result.plan.budget
    rows = [
        ("format", result.plan.format),
        (
            "grouping, merge",
            f"{result.plan.method}, {result.plan.merging.key} for keys, {result.plan.merging.value} for values",
        ),
        (
            result.plan.sized,
            f"{made.kv_bytes_per_token_before:,} → {made.kv_bytes_per_token:,} bytes per token",
        ),
        ("kv_ratio", f"{made.kv_ratio:.4g} ({made.asked})"),
        (
            "written",
            "nothing (dry run)" if dry_run else f"{result.bytes_written / 2**20:,.0f} MiB to {output}",
        ),
    ]
    if result.repairs:
        from gqakit.recovery.repair.summary import summary

        rows.append(("repair", summary(result.repairs)))
    screen.table("Converted" if not dry_run else "Would convert", ("", ""), rows)
    if result.evaluation:
        from gqakit.evaluation.table import header

        screen.table("Measured", header(result.evaluation), [row.cells() for row in result.evaluation])


def _refuse_beside_plan(ctx: typer.Context, plan: Path | None) -> None:
    """A plan has decided already: options that would decide are refused, not ignored."""
    sources = {name: ctx.get_parameter_source(name) for name in DECIDES}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if plan is not None and given:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{listed} cannot change the plan {plan}; make another with `gqakit plan`")
