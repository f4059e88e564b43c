"""A trained model as a checkpoint like the one it was trained from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint, Replacement, WriteJob, write_checkpoint
from gqakit.conversion.files import CARD_FILE, CHECKSUM_FILE
from gqakit.models.load import load
from gqakit.models.shipping import shipped_code
from gqakit.models.spec import ModelSpec
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.trainable import checkpoint_names, merged_weights

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_trained(
    start: Checkpoint,
    spec: ModelSpec,
    out: Path,
    *,
    trained: Mapping[str, Tensor],
    options: UptrainOptions,
    files: Mapping[str, bytes],
    job: Mapping[str, Any],
    overwrite: bool,
    progress: Any,
) -> None:
    """Write `start` with the trained weights in it, and everything that lay beside them.

    Args:
        start: what was trained. spec: its description.
        trained: parameters by name, as the store keeps them; empty where the start is the best.
        files: record, metrics and card. job: what decides the result.
        progress: called with the bytes just written.

    Raises:
        OutputError, CheckpointError: see `write_checkpoint`.
    """
    model = load(start.path, dtype=torch.float32)
    names = checkpoint_names(model, start.tensors)
    weights = merged_weights(model, spec, options, trained) if trained else {}
    code = _CODES.get(options.output_dtype)
    replaced: dict[str, Replacement] = {}
    for name, tensor in weights.items():
        for stored in names[name]:
            info = start.info(stored)
            replaced[stored] = Replacement(info.shape, code, _Cast(tensor, _dtype(options, info.torch_dtype)))
    if code is not None:
        for name, info in start.tensors.items():
            if name not in replaced and info.torch_dtype.is_floating_point:
                replaced[name] = Replacement(
                    info.shape, code, _Load(start, name, _dtype(options, info.torch_dtype))
                )
    write_checkpoint(
        start,
        out,
        WriteJob(
            replaced=replaced,
            config=_config(start, options),
            decides=job,
            extra_files={**_inherited(start, spec), **files},
            checksum_file=CHECKSUM_FILE,
        ),
        overwrite=overwrite,
        progress=progress,
    )


class _Cast:
    """A trained tensor in the precision it is written in."""

    def __init__(self, tensor: Tensor, dtype: torch.dtype) -> None:
        self.tensor, self.dtype = tensor, dtype

    def __call__(self) -> Tensor:
        return self.tensor.to(self.dtype).contiguous()


class _Load:
    """A tensor that did not train, in another precision."""

    def __init__(self, start: Checkpoint, name: str, dtype: torch.dtype) -> None:
        self.start, self.name, self.dtype = start, name, dtype

    def __call__(self) -> Tensor:
        return self.start.load(self.name).to(self.dtype)


def _dtype(options: UptrainOptions, stored: torch.dtype) -> torch.dtype:
    return stored if options.output_dtype == "same" else getattr(torch, options.output_dtype)


def _config(start: Checkpoint, options: UptrainOptions) -> dict[str, Any]:
    if options.output_dtype == "same":
        return start.config
    key = "torch_dtype" if "torch_dtype" in start.config else "dtype"
    return {**start.config, key: options.output_dtype}


def _inherited(start: Checkpoint, spec: ModelSpec) -> dict[str, bytes]:
    """What gqakit put beside the weights: the plan and other records, and the model code, as this release has it."""
    found = {
        path.name: path.read_bytes()
        for path in sorted(start.path.glob("gqakit-*.json"))
        if path.name != CHECKSUM_FILE
    }
    return {**found, **(shipped_code() if spec.is_grouped else {})}


def read_card(start: Checkpoint) -> str:
    """The model card of a checkpoint, empty where there is none."""
    path = start.path / CARD_FILE
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
