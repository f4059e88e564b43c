"""Tensors in a safetensors file, streamed one by one, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gqakit.checkpoint import TensorInfo, atomic_file, dtype_code
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.header import build_header
from gqakit.errors import OutputError


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the order given; a tensor at a time is copied.

    Raises:
        OutputError: the operating system refuses, for want of space or rights.
    """
    infos: list[TensorInfo] = []
    at = 0
    for name, tensor in tensors.items():
        infos.append(
            TensorInfo(name, dtype_code(tensor.dtype), tuple(tensor.shape), path.name, at, at + tensor.nbytes)
        )
        at += tensor.nbytes
    with atomic_file(path) as file, output_errors(path):
        file.write(build_header({"format": "pt"}, infos))
        for tensor in tensors.values():
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        OutputError: it is missing or damaged; it lies in a directory of ours.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: cannot be read ({error}); use --restart to train from the beginning"
        ) from error
