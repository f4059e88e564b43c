"""`gqakit evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.console import Screen
from gqakit.cli.options import (
    Audio,
    Dataset,
    DatasetColumn,
    DatasetSplit,
    Device,
    Dtype,
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


def command(
    model: Model,
    converted: Annotated[
        list[str] | None, typer.Argument(help="What was made of it.", show_default=False)
    ] = None,
    text: Text = None,
    images: Images = None,
    audio: Audio = None,
    samples: Samples = None,
    image_size: ImageSize = None,
    dataset: Dataset = None,
    dataset_split: DatasetSplit = "test",
    dataset_column: DatasetColumn = "text",
    window: Window = 512,
    tokens: Tokens = 4096,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity or agreement of embeddings, divergence from the source, and cache size as computed and as measured."""
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    source = data_source(
        text, dataset, dataset_split, dataset_column, "evaluation", images, audio, samples, image_size
    )
    from gqakit.evaluation.evaluate import evaluate
    from gqakit.evaluation.table import header

    rows = evaluate(
        model,
        converted or [],
        text=source,
        window=window,
        tokens=tokens,
        dtype=dtype,
        device=device,
        progress=screen.progress,
    )
    if as_json:
        screen.json({"window": window, "dtype": dtype, "checkpoints": rows})
        return
    screen.table(f"{rows[0].sample(window)}, {dtype}", header(rows), [row.cells() for row in rows])
