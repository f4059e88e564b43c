"""A trained model as a checkpoint like the one it was trained from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint, Replacement, WriteJob, dtype_code, write_checkpoint
from gqakit.conversion.files import CARD_FILE, CHECKSUM_FILE
from gqakit.models.load import load
from gqakit.models.shipping import shipped_code
from gqakit.models.source import Source
from gqakit.progress import Advance
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.trainable import checkpoint_names, merged_weights


@dataclass(frozen=True)
class Trained:
    """What a run leaves to be written.

    Attributes:
        weights: by their names in the model that was trained; empty where the start is the best.
        files: record, metrics and card, by name. job: what decides the result.
    """

    weights: Mapping[str, Tensor]
    files: Mapping[str, bytes]
    job: Mapping[str, Any]


def write_trained(
    source: Source,
    out: Path,
    trained: Trained,
    options: UptrainOptions,
    *,
    overwrite: bool,
    progress: Advance,
) -> None:
    """Write a checkpoint with trained weights in it, and everything that lay beside them.

    Args:
        source: what was trained.
        out: the new directory.
        trained: the weights, and what goes beside them.
        options: of the run; they say which parameters trained and the precision to write.
        overwrite: replace a checkpoint in `out`.
        progress: called with the bytes just written.

    Raises:
        OutputError, CheckpointError: see `write_checkpoint`.
    """
    start, spec = source.checkpoint, source.spec
    model = load(start.path, dtype=torch.float32)
    names = checkpoint_names(model, start.tensors)
    weights = merged_weights(model, spec, options, trained.weights) if trained.weights else {}
    precision = options.output_precision
    code = None if precision is None else dtype_code(getattr(torch, precision))
    replaced: dict[str, Replacement] = {}
    for name, tensor in weights.items():
        for stored in names[name]:
            info = start.info(stored)
            replaced[stored] = Replacement(
                info.shape, code, partial(_cast, tensor, _dtype(options, info.torch_dtype))
            )
    if code is not None:
        for name, info in start.tensors.items():
            if name not in replaced and info.torch_dtype.is_floating_point:
                replaced[name] = Replacement(
                    info.shape, code, partial(_converted, start, name, _dtype(options, info.torch_dtype))
                )
    write_checkpoint(
        start,
        out,
        WriteJob(
            replaced=replaced,
            config=_config(start, options),
            decides=trained.job,
            extra_files={**_inherited(source), **trained.files},
            checksum_file=CHECKSUM_FILE,
        ),
        overwrite=overwrite,
        progress=progress,
    )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous()


def _converted(start: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    return start.load(name).to(dtype)


def _dtype(options: UptrainOptions, stored: torch.dtype) -> torch.dtype:
    return stored if options.output_precision is None else getattr(torch, options.output_precision)


def _config(start: Checkpoint, options: UptrainOptions) -> dict[str, Any]:
    if options.output_precision is None:
        return start.config
    key = "torch_dtype" if "torch_dtype" in start.config else "dtype"
    return {**start.config, key: options.output_precision}


def _inherited(source: Source) -> dict[str, bytes]:
    """What gqakit put beside the weights: the plan and other records, and the model code, as this release has it."""
    found = {
        path.name: path.read_bytes()
        for path in sorted(source.path.glob("gqakit-*.json"))
        if path.name != CHECKSUM_FILE
    }
    return {**found, **(shipped_code(source.spec.family.model_type) if source.spec.is_grouped else {})}


def read_card(start: Checkpoint) -> str:
    """The model card of a checkpoint, empty where there is none."""
    path = start.path / CARD_FILE
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
