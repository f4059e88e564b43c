"""`calibrate`: text in, moments out."""

from __future__ import annotations

import logging
from pathlib import Path

from gqakit.calibration.collect import collect_moments
from gqakit.calibration.store import MomentsFile, MomentsHeader, save_moments
from gqakit.checkpoint import Checkpoint
from gqakit.data.batches import DataSource, batches_of, check_content, read_source
from gqakit.data.samples import positions_of
from gqakit.errors import DataError, OutputError, UsageError
from gqakit.models.families import FAMILIES
from gqakit.models.inspection import open_model
from gqakit.models.layers import read_layer
from gqakit.models.load import look_on
from gqakit.models.running import load_model
from gqakit.models.spec import GROUPED_PREFIX, ModelSpec
from gqakit.progress import Reporter, silent

WINDOW = 512
TOKENS = 12288

LOG = logging.getLogger("gqakit")


def calibrate(
    model: str,
    out: Path,
    *,
    text: DataSource = ("calibration",),
    tokens: int = TOKENS,
    window: int = WINDOW,
    dtype: str = "float32",
    device: str = "auto",
    progress: Reporter = silent,
) -> MomentsFile:
    """Run the model over some text, images or speech once and save the moments of every layer, of all stacks.

    Args:
        model: directory or hub name.
        out: the moments file.
        text: text files, "calibration" for the text that comes with gqakit, or a `Text`, `Images` or `Speech`.
        tokens: of text at most so many, in whole windows.
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
    source, _ = open_model(model)
    return calibrate_opened(
        source,
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
    name: str,
    out: Path,
    *,
    text: DataSource,
    tokens: int,
    window: int,
    dtype: str,
    device: str,
    progress: Reporter,
) -> MomentsFile:
    """`calibrate` for a checkpoint that is open already."""
    if not out.parent.is_dir() or out.is_dir():
        raise OutputError(f"moments go into a file in a directory that exists; {out} is not one")
    spec = spec_of_all(source)
    check_not_grouped(source, spec)
    content = read_source(text)
    check_content(spec, content)
    batches = batches_of(source, spec, content, window=window, tokens=tokens)
    positions = sum(map(positions_of, batches))
    if spec.family.task != "image" and positions < spec.hidden_size:  # an image has many positions
        LOG.warning(
            "%s: only %d tokens, fewer than the model is wide (%d), so the moments say nothing about most directions. "
            "Calibrate on more.",
            content.name,
            positions,
            spec.hidden_size,
        )
    model = load_model(source, dtype, device)
    look_on(model, spec)
    try:
        with progress("calibrate", positions, unit_of(spec)) as advance:
            layers = collect_moments(model, spec, batches, advance)
    except DataError:
        for layer in range(spec.num_layers):
            read_layer(spec, layer, source.load)  # names the tensor, if one is what is not finite
        raise
    header = MomentsHeader(
        source=name,
        fingerprint=source.fingerprint(),
        num_layers=spec.num_layers,
        width=spec.hidden_size,
        tokens=positions,
        tokens_asked=tokens,
        window=window,
        text=content.name,
        text_sha256=content.sha256,
    )
    return save_moments(out, header, {spec.key(layer): moments for layer, moments in layers.items()})


def spec_of_all(source: Checkpoint) -> ModelSpec:
    """The description of a checkpoint with all of its stacks."""
    family = FAMILIES.get(str(source.config.get("model_type")).removeprefix(GROUPED_PREFIX))
    stacks = None if family is None else [stack.name for stack in family.stacks]
    return open_model(str(source.path), stacks)[1]


def unit_of(spec: ModelSpec) -> str:
    """What progress counts for a model."""
    return "images" if spec.family.task == "image" else "tokens"


def check_not_grouped(source: Checkpoint, spec: ModelSpec) -> None:
    """Raise `UsageError` for a checkpoint that is grouped already: there is nothing to convert it to."""
    if spec.is_grouped:
        raise UsageError(
            f"{source.path} is already a grouped checkpoint; convert from the model it was made of"
        )
