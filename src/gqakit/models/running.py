"""Loading for the functions beside this file: models, tokenizers, precisions, devices."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError, UsageError, unknown_name
from gqakit.models.load import load

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda")


def load_model(checkpoint: Checkpoint, dtype: str, device: str) -> PreTrainedModel:
    """A checkpoint as a running model.

    Raises:
        UsageError: for an unknown precision or device, or a GPU that is not there.
        CheckpointError: when it does not load.
    """
    if dtype not in PRECISIONS:
        raise unknown_name("dtype", dtype, PRECISIONS)
    return load(checkpoint.path, dtype=PRECISIONS[dtype]).to(check_device(device))  # pyright: ignore[reportArgumentType]


def check_device(device: str) -> str:
    """The device to run on: "cpu" or "cuda".

    Raises:
        UsageError: it is not known, or torch does not see it.
    """
    if device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' was asked for, but torch sees no GPU; use --device cpu")
    return device


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: when it has none.
    """
    try:
        return AutoTokenizer.from_pretrained(str(checkpoint.path), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer that loads ({str(error).splitlines()[0]}); text needs one"
        ) from error
