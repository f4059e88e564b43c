"""The step after `convert` that refits the output projections."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from gqakit.api.models import load_model, load_tokenizer
from gqakit.calibration.refit import LayerRefit, refit_outputs
from gqakit.calibration.text import Text, token_windows
from gqakit.checkpoint import Checkpoint, Replacement, write_checkpoint
from gqakit.convert import CARD_FILE, CHECKSUM_FILE, PLAN_FILE
from gqakit.errors import DataError
from gqakit.families import ModelSpec
from gqakit.progress import Reporter
from gqakit.runtime import shipped_code

REFIT_FILE = "gqakit-refit.json"
HELD_OUT = 6
"""One window of so many decides and is not fitted on."""


def staging_of(out: Path) -> Path:
    """Where the conversion lies until it is refitted."""
    return out.with_name(out.name + ".unfitted")


def refit_windows(source: Checkpoint, text: Text, tokens: int, window: int) -> Tensor:
    """The windows to fit and decide on.

    Raises:
        DataError: when there are fewer than two.
    """
    windows = token_windows(load_tokenizer(source), text, window=window, tokens=tokens)
    if len(windows) < 2:
        raise DataError(
            f"refitting needs two windows of text, one to fit and one held out; {text.name} gives one"
        )
    return windows


def refit_staged(
    source: Checkpoint,
    spec: ModelSpec,
    out: Path,
    *,
    text: Text,
    tokens: int,
    window: int,
    device: str,
    overwrite: bool,
    progress: Reporter,
) -> list[LayerRefit]:
    """Refit the conversion in `staging_of(out)` and write the result to `out`; the staging directory then goes.

    Raises:
        DataError: when the text has fewer than two windows. OutputError, CheckpointError.
    """
    staged = Checkpoint.open(staging_of(out))
    windows = refit_windows(source, text, tokens, window)
    converted = load_model(staged, "float32", device)
    original = load_model(source, "float32", device)
    with progress("refit", spec.num_layers, "layers") as advance:
        results = refit_outputs(original, converted, spec, windows, -(-len(windows) // HELD_OUT), advance)
    replaced: dict[str, Replacement] = {}
    for layer, result in enumerate(results):
        if result.ridge is None:
            continue
        name = spec.tensor(layer, "output")
        info = staged.info(name)
        weight = (
            spec.projection(converted, layer, "output")
            .get_parameter("weight")
            .detach()
            .to("cpu", info.torch_dtype)
        )
        replaced[name] = Replacement(info.shape, None, weight.contiguous)
    record = {"text": text.name, "text_sha256": text.sha256, "tokens": windows.numel(), "window": window}
    record["layers"] = [asdict(result) for result in results]
    extra = {name: (staged.path / name).read_bytes() for name in (PLAN_FILE, CARD_FILE)}
    extra[REFIT_FILE] = (json.dumps(record, indent=2) + "\n").encode()
    if spec.family.model_type != staged.config["model_type"]:
        extra |= shipped_code()
    with progress("write", staged.nbytes, "bytes") as advance:
        write_checkpoint(
            staged,
            out,
            replaced=replaced,
            config=staged.config,
            extra_files=extra,
            job={"refit": record},
            checksum_file=CHECKSUM_FILE,
            overwrite=overwrite,
            progress=advance,
        )
    shutil.rmtree(staged.path)
    return results
