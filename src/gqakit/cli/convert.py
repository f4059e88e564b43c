"""`gqakit convert`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from gqakit.cli.command import Model, Output, command
from gqakit.cli.console import Screen
from gqakit.conversion.options import ConvertOptions
from gqakit.progress import duration

if TYPE_CHECKING:
    from gqakit.pipeline import ConvertResult


@command(
    ConvertOptions,
    examples=(
        "convert MODEL --kv-ratio 0.5 --text my.txt -o smaller",
        "convert MODEL --kv-gib 8 --context 32768 --batch 4 --text my.txt -o smaller --repair",
        "convert MODEL --plan plan.json -o smaller",
    ),
    resumes="the same command goes on where it stopped",
)
def convert(screen: Screen, model: Model, output: Output, options: ConvertOptions) -> None:
    """Write a checkpoint with a smaller KV cache: calibrate, plan and convert, or carry out a plan.

    Interrupted, the same command goes on where it stopped.
    """
    from gqakit.pipeline import convert

    result = convert(model, output, options=options, progress=screen.progress)
    if screen.as_json:
        screen.json(result)
        return
    screen.table("Would convert" if options.dry_run else "Converted", ("", ""), _rows(result, options))
    if result.evaluation:
        from gqakit.evaluation.table import header

        screen.table(
            f"Measured on {result.measured_on}",
            header(result.evaluation),
            [row.cells() for row in result.evaluation],
        )
    if not options.dry_run:
        screen.line(f"Next: gqakit {shlex.join(['verify', model, str(output)])}")


def _rows(result: ConvertResult, options: ConvertOptions) -> list[tuple[str, str]]:
    """What a person wants to know of a conversion."""
    from gqakit.models.memory import in_words

    plan, made = result.plan, result.plan.budget
    rows = [
        (plan.sized, f"{made.kv_bytes_per_token_before:,} → {made.kv_bytes_per_token:,} bytes per token"),
        ("kv_ratio", f"{made.kv_ratio:.4g} (asked: {made.asked})"),
    ]
    if plan.sized == "KV cache":
        rows.append(("same memory", f"{1 / made.kv_ratio:.3g} times as many tokens as before"))
    if made.kv_ratio == 1:
        rows.append(("note", "the source meets this budget as it is: nothing to do"))
    rows += [
        ("format", f"{plan.format}: {plan.engines}"),
        ("grouping", plan.method),
        ("merge rule", f"{plan.merging.key} for keys, {plan.merging.value} for values"),
    ]
    if plan.cache is not None:
        rows += [("types of the cache", plan.cache.in_words), *(("note", note) for note in plan.notes)]
    if result.repairs:
        from gqakit.recovery.repair.summary import summary

        rows.append(("repair", summary(result.repairs)))
    written = f"{result.bytes_written / 2**20:,.0f} MiB to {result.out}"
    rows.append(("written", "nothing (dry run)" if options.dry_run else written))
    rows += [
        ("beside it", f"{path.name}, {in_words(path.stat().st_size)}; a second run uses it")
        for path in result.beside
    ]
    return [*rows, ("time", duration(result.seconds))]
