"""`gqakit compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqakit.cli.command import Model, Output, command
from gqakit.cli.console import Screen
from gqakit.comparison.options import CompareOptions
from gqakit.progress import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gqakit.comparison.cells import Cell
    from gqakit.evaluation.measures import Measure


@command(
    CompareOptions,
    examples=(
        "compare MODEL --text my.txt -o compared",
        "compare MODEL --ways neighbour-mean,fold --kv-ratios 1/2,1/4 -o compared",
        "compare MODEL --kv-cache q8_0 --kv-cache q8_0,q4_0+h -o compared",
        "compare MODEL --text my.txt --evaluate-text held-out.txt --repair -o compared",
        "compare MODEL --text my.txt --tasks arc_easy,questions.jsonl --limit 200 -o compared",
    ),
    resumes="the same command goes on at the next conversion",
)
def compare(screen: Screen, model: Model, output: Output, options: CompareOptions) -> None:
    """Convert in several ways to several budgets, score each at equal bytes: a table, JSON, and one HTML page.

    Each checkpoint, the source first, is scored with its cache in 16 bits and in the types of --kv-cache.

    Interrupted, the same command goes on at the next conversion.
    """
    from gqakit.comparison.compare import compare
    from gqakit.evaluation.measures import measures_named

    result = compare(model, output, options=options, progress=screen.progress)
    if screen.as_json:
        screen.json(result)
        return
    measures = measures_named(result.cells[0].scores)
    header = ("checkpoint", "KV bytes/token", "kv_ratio", *(each.title for each in measures))
    screen.table(f"Scored on {result.scored_on}", header, [_cells(each, measures) for each in result.cells])
    for each in result.cells:
        if each.why_not:
            screen.line(f"{each.name}: {each.why_not}")
    screen.line(f"Page: {result.page}, results: {result.file} ({duration(result.seconds)})")


def _cells(cell: Cell, measures: Sequence[Measure]) -> tuple[str, ...]:
    if not cell.scores:
        return (cell.name, "-", "-", *("-" for _ in measures))
    scores = (each.shown(cell.scores[each.name]) for each in measures)
    return (cell.name, f"{cell.kv_bytes:,}", f"{cell.kv_ratio:.3f}", *scores)
