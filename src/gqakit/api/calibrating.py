"""`calibrate`: text in, moments out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gqakit.api.models import load_model, load_tokenizer
from gqakit.calibration.collect import collect_moments
from gqakit.calibration.store import MomentsFile, MomentsHeader, save_moments
from gqakit.calibration.text import Text, read_text, token_windows
from gqakit.checkpoint import Checkpoint
from gqakit.errors import DataError, OutputError, UsageError
from gqakit.families import ModelSpec, read_layer
from gqakit.inspection import open_model
from gqakit.progress import Reporter, silent

WINDOW = 512
TOKENS = 12288


def calibrate(
    model: str,
    out: Path,
    *,
    text: Text | Sequence[str | Path] = ("calibration",),
    tokens: int = TOKENS,
    window: int = WINDOW,
    dtype: str = "float32",
    device: str = "auto",
    progress: Reporter = silent,
) -> MomentsFile:
    """Run the model over some text once and save the moments of every layer.

    Args:
        model: directory or hub name.
        out: the moments file.
        text: a `Text`, or files, or "calibration" for the text that comes with gqakit.
        tokens: at most so many, in whole windows.
        window: tokens a window.
        dtype: precision to run the model in.
        device: "cpu", "cuda" or "auto".
        progress: see the package.

    Raises:
        CheckpointError, FamilyError: about the model.
        DataError: about the text.
        OutputError: when `out` cannot be written.
        UsageError: for a checkpoint that is grouped already.
    """
    source, spec = open_model(model)
    return calibrate_opened(
        source,
        spec,
        model,
        out,
        text=text,
        tokens=tokens,
        window=window,
        dtype=dtype,
        device=device,
        progress=progress,
    )


def calibrate_opened(
    source: Checkpoint,
    spec: ModelSpec,
    name: str,
    out: Path,
    *,
    text: Text | Sequence[str | Path],
    tokens: int,
    window: int,
    dtype: str,
    device: str,
    progress: Reporter,
) -> MomentsFile:
    """`calibrate` for a checkpoint that is open already."""
    if not out.parent.is_dir() or out.is_dir():
        raise OutputError(f"moments go into a file in a directory that exists; {out} is not one")
    check_not_grouped(source, spec)
    content = text if isinstance(text, Text) else read_text(text)
    windows = token_windows(load_tokenizer(source), content, window=window, tokens=tokens)
    model = load_model(source, dtype, device)
    try:
        with progress("calibrate", windows.numel(), "tokens") as advance:
            layers = collect_moments(model, spec, windows, advance)
    except DataError:
        for layer in range(spec.num_layers):
            read_layer(spec, layer, source.load)  # names the tensor, if one is what is not finite
        raise
    header = MomentsHeader(
        source=name,
        fingerprint=source.fingerprint(),
        num_layers=spec.num_layers,
        width=spec.hidden_size,
        tokens=windows.numel(),
        tokens_asked=tokens,
        window=window,
        text=content.name,
        text_sha256=content.sha256,
    )
    return save_moments(out, header, layers)


def check_not_grouped(source: Checkpoint, spec: ModelSpec) -> None:
    """Raise `UsageError` for a checkpoint that is grouped already: there is nothing to convert it to."""
    if spec.is_grouped:
        raise UsageError(
            f"{source.path} is already a grouped checkpoint; convert from the model it was made of"
        )
