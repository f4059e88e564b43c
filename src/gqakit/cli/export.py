"""`gqakit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.exporters.options import ExportOptions

if TYPE_CHECKING:
    from gqakit.exporters.export import ExportResult

Target = Annotated[
    Path,
    typer.Option("--output", "-o", help="The file (gguf) or directory to write.", rich_help_panel="Output"),
]


@command(
    ExportOptions,
    examples=(
        "export CONVERTED --to gguf -o model.gguf",
        "export CONVERTED --to uniform -o stock",
        "export CONVERTED --to nemotron-nas -o for-mlx",
    ),
    resumes="nothing is left under the output's name but what a rerun continues",
)
def export(screen: Screen, model: Model, output: Target, options: ExportOptions) -> None:
    """Write a checkpoint for another engine: llama.cpp, MLX-LM, an engine of stock checkpoints, ONNX Runtime.

    The result computes the same. Where an engine needs more heads, their price is printed. docs/serving.md has a command
    for each engine.
    """
    from gqakit.exporters.export import export

    result = export(model, output, options=options, progress=screen.progress)
    if screen.as_json:
        screen.json(result)
        return
    screen.table("Exported", ("", ""), _rows(result))


def _rows(result: ExportResult) -> list[tuple[str, str]]:
    more = result.parameters / result.parameters_before - 1
    grown = f" ({more:+.1%})" if result.parameters != result.parameters_before else ", as before"
    cache = f"{result.kv_bytes_per_token:,} bytes per token"
    if result.kv_bytes_per_token != result.kv_bytes_per_token_before:
        cache = f"{result.kv_bytes_per_token_before:,} → {cache}"
    return [
        ("written", f"{result.bytes_written / 2**20:,.1f} MiB to {result.out}"),
        ("as", result.kind + (f", by {result.how}" if result.how else "")),
        ("query heads per layer", _span(result.query_heads)),
        ("KV heads per layer", _span(result.kv_heads)),
        ("parameters", f"{result.parameters:,}{grown}"),
        ("KV cache", f"{cache}, at the checkpoint's precision"),
        *(("note", note) for note in result.notes),
    ]


def _span(counts: tuple[int, ...]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
