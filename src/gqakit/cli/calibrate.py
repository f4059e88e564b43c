"""`gqakit calibrate`."""

from __future__ import annotations

from pathlib import Path
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The moments file to write (.safetensors).")],
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
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the model over some text once and keep the moments that every method works from."""
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    source = data_source(
        text, dataset, dataset_split, dataset_column, "calibration", images, audio, samples, image_size
    )
    from gqakit.calibration.calibrate import calibrate

    moments = calibrate(
        model,
        output,
        text=source,
        tokens=tokens,
        window=window,
        dtype=dtype,
        device=device,
        progress=screen.progress,
    )
    if as_json:
        screen.json(
            {"path": str(moments.path), "fingerprint": moments.fingerprint, **moments.header.model_dump()}
        )
    else:
        head = moments.header
        screen.line(
            f"{moments.path}: moments of {head.num_layers} layers over {head.tokens:,} tokens of {head.text}"
        )
