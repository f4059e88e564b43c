"""`gqakit evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.evaluation.options import EvaluateOptions


@command(
    EvaluateOptions,
    examples=(
        "evaluate MODEL CONVERTED",
        "evaluate MODEL ONE TWO --text held-out.txt",
        "evaluate MODEL CONVERTED --tasks arc_easy,questions.jsonl",
    ),
)
def evaluate(
    screen: Screen,
    model: Model,
    converted: Annotated[
        list[str] | None, typer.Argument(help="What was made of it; may be several.", show_default=False)
    ] = None,
    *,
    options: EvaluateOptions,
) -> None:
    """Perplexity, or agreement of embeddings; divergence from the source; cache size as computed and as measured.

    With --tasks, what lm-eval scores on these in place of it.
    """
    from gqakit.checkpoint import Checkpoint
    from gqakit.evaluation.evaluate import evaluate
    from gqakit.evaluation.table import header, task_tables
    from gqakit.models.running import Running

    rows = evaluate(model, converted or [], options=options, progress=screen.progress)
    ran = str(Running.of(options, Checkpoint.open(model)).dtype).removeprefix("torch.")
    if screen.as_json:
        how = {"limit": options.limit} if options.tasks else {"window": options.window}
        screen.json({**how, "dtype": ran, "checkpoints": rows})
        return
    if options.tasks:
        for title, headings, lines in task_tables(rows):
            screen.table(f"{title}, {ran}", headings, lines)
        return
    title = f"{rows[0].sample(options.window)}, {ran}"
    screen.table(title, header(rows), [row.cells() for row in rows])
