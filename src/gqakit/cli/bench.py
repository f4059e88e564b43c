"""`gqakit bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.evaluation.bench_options import BenchOptions


@command(
    BenchOptions,
    examples=(
        "bench MODEL CONVERTED",
        "bench MODEL CONVERTED --contexts 4096,8192 --batches 1,8 --dtype bf16",
    ),
)
def bench(
    screen: Screen,
    model: Model,
    converted: Annotated[
        list[str] | None, typer.Argument(help="What was made of it; may be several.", show_default=False)
    ] = None,
    *,
    options: BenchOptions,
) -> None:
    """Speed of reading and of writing, and the size of the cache, in transformers: ratios in one run."""
    from gqakit.evaluation.bench import BenchRow, bench

    rows = bench(model, converted or [], options=options, progress=screen.progress)
    if screen.as_json:
        screen.json(rows)
        return
    title = (
        f"{options.new_tokens} tokens per round, {options.rounds} rounds, {options.precision}; compare ratios"
    )
    screen.table(title, BenchRow.HEADER, [row.cells() for row in rows])
