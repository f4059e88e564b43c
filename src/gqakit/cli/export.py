"""`gqakit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gqakit.cli.console import Screen, interruptible
from gqakit.cli.options import Json, Model, Quiet, Verbose

if TYPE_CHECKING:
    from gqakit.exporters.export import ExportResult

_GGUF = "GGUF"
_UNIFORM = "uniform"


def command(
    model: Model,
    to: Annotated[str, typer.Option(help="gguf, uniform or onnx.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The file (gguf) or directory to write.", show_default=False),
    ],
    how: Annotated[
        str | None,
        typer.Option(
            help="pad: query heads that nothing reads, larger weights. equalise: KV heads written again, a larger cache. "
            "Default: the smaller cache.",
            rich_help_panel=_UNIFORM,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="f32, f16 or bf16. Default: the checkpoint's own.", rich_help_panel=_GGUF),
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(
            help="Q8_0, Q5_0, Q5_1, Q4_0 or Q4_1; with llama.cpp's llama-quantize on the PATH also Q4_K_M and others.",
            rich_help_panel=_GGUF,
        ),
    ] = None,
    tokenizer_pre: Annotated[
        str | None,
        typer.Option(
            help="llama.cpp's name of how text is split before BPE. Default: as tokenizer.json says.",
            rich_help_panel=_GGUF,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a checkpoint for another engine: llama.cpp, an engine of stock checkpoints, ONNX Runtime.

    The result computes the same. Where an engine needs more heads, their price is printed. docs/serving.md has a command
    for each engine.
    """
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.exporters.export import export

    with interruptible(screen, "; nothing is left under the output's name but what a rerun continues"):
        result = export(
            model,
            output,
            to=to,
            how=how,
            dtype=dtype,
            quantise=quantise,
            tokenizer_pre=tokenizer_pre,
            overwrite=overwrite,
            progress=screen.progress,
        )
    if as_json:
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
        ("query heads a layer", _span(result.query_heads)),
        ("KV heads a layer", _span(result.kv_heads)),
        ("parameters", f"{result.parameters:,}{grown}"),
        ("KV cache", f"{cache}, at the checkpoint's precision"),
        *(("note", note) for note in result.notes),
    ]


def _span(counts: tuple[int, ...]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
