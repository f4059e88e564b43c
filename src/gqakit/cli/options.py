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
Stacks = Annotated[
    str | None,
    typer.Option(
        help="Kinds of attention layers to convert, such as decoder,cross (see `gqakit families`). Default: what is cached.",
        rich_help_panel=_HOW,
    ),
]
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
Images = Annotated[
    str | None,
    typer.Option(
        help="For image models: a folder of images, an .npz of uint8 [n, height, width, 3], or a dataset name.",
        rich_help_panel=_DATA,
    ),
]
Audio = Annotated[
    list[str] | None,
    typer.Option(
        help="For speech models: a recording or a folder of them; may be repeated.", rich_help_panel=_DATA
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="At most so many images or recordings.", rich_help_panel=_DATA)
]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Height and width of --images for the model; default: its own.", rich_help_panel=_DATA),
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


def names_of(listed: str | None) -> tuple[str, ...]:
    """Names that an option lists with commas between them."""
    return tuple(filter(None, (listed or "").split(",")))


def data_source(
    text: list[str] | None,
    dataset: str | None,
    split: str,
    column: str,
    default: str,
    images: str | None = None,
    audio: list[str] | None = None,
    samples: int | None = None,
    image_size: int | None = None,
) -> Any:
    """What `--text`, `--dataset`, `--images` or `--audio` name: file names, or what was read from them.

    Raises:
        UsageError: when several are given. DataError, MissingDependencyError: about what is read.
    """
    given = [name for name, value in _named(text, dataset, images, audio).items() if value]
    if len(given) > 1:
        from gqakit.errors import UsageError

        raise UsageError(f"give one of {' and '.join(given)}, not {len(given)}")
    if images is not None:
        from gqakit.data.samples import read_images

        return read_images(images, samples, image_size)
    if audio:
        from gqakit.data.samples import read_speech

        return read_speech(audio, samples)
    if dataset is None:
        return text or [default]
    from gqakit.data.text import read_dataset

    return read_dataset(dataset, split, column)


def _named(text: Any, dataset: Any, images: Any, audio: Any) -> dict[str, Any]:
    return {"--text": text, "--dataset": dataset, "--images": images, "--audio": audio}
