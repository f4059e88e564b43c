"""Options that several commands share, and what `-q`, `-v` and `--json` mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_BUDGET = "Budget (give one)"
_HOW = "How"
_DATA = "Calibration data"
_SHOW = "Output"

Model = Annotated[
    str,
    typer.Argument(help="Directory of a checkpoint, or a name on the Hugging Face hub.", show_default=False),
]

KvRatio = Annotated[
    float | None, typer.Option(help="KV-cache bytes after / before, such as 0.5.", rich_help_panel=_BUDGET)
]
KvHeads = Annotated[int | None, typer.Option(help="KV heads a layer.", rich_help_panel=_BUDGET)]
KvBytesPerToken = Annotated[
    int | None,
    typer.Option(help="Cache bytes per token, at the checkpoint's precision.", rich_help_panel=_BUDGET),
]
KvGib = Annotated[
    float | None,
    typer.Option(help="GiB for the whole cache, with --context and --batch.", rich_help_panel=_BUDGET),
]
Context = Annotated[
    int | None, typer.Option(help="Tokens a sequence, for --kv-gib.", rich_help_panel=_BUDGET)
]
Batch = Annotated[int | None, typer.Option(help="Sequences, for --kv-gib (1).", rich_help_panel=_BUDGET)]

Seed = Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=_HOW)]
Moments = Annotated[
    Path | None,
    typer.Option(help="Moments made by `gqakit calibrate`.", rich_help_panel=_DATA, show_default=False),
]

Text = Annotated[
    list[str] | None,
    typer.Option(
        help="A UTF-8 text file; may be repeated. Default: a text that comes with gqakit.",
        rich_help_panel=_DATA,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(help="A dataset (hub name or local directory) instead of --text.", rich_help_panel=_DATA),
]
DatasetSplit = Annotated[str, typer.Option(help="Which split of --dataset.", rich_help_panel=_DATA)]
DatasetColumn = Annotated[
    str, typer.Option(help="Which column of --dataset holds text.", rich_help_panel=_DATA)
]
Tokens = Annotated[int, typer.Option(help="At most so many tokens, in whole windows.", rich_help_panel=_DATA)]
Window = Annotated[int, typer.Option(help="Tokens a window.", rich_help_panel=_DATA)]

Device = Annotated[str, typer.Option(help="cpu, cuda or auto.", rich_help_panel=_HOW)]
Dtype = Annotated[
    str, typer.Option(help="Precision to run in: float32, bfloat16 or float16.", rich_help_panel=_HOW)
]

Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, and nothing else, on standard output.", rich_help_panel=_SHOW),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.", rich_help_panel=_SHOW)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.", rich_help_panel=_SHOW)]


def data_source(text: list[str] | None, dataset: str | None, split: str, column: str, default: str) -> Any:
    """What `--text` or `--dataset` name: file names, or a `Text`.

    Raises:
        UsageError: when both are given. DataError, MissingDependencyError: about the dataset.
    """
    if dataset is None:
        return text or [default]
    from gqakit.calibration.text import read_dataset
    from gqakit.errors import UsageError

    if text:
        raise UsageError("give --text or --dataset, not both")
    return read_dataset(dataset, split, column)
