"""A checkpoint as a running model, and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedModel

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError, UsageError
from gqakit.models.load import load


def load_model(checkpoint: Checkpoint, precision: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """A checkpoint as a running model.

    Args:
        checkpoint: opened.
        precision: of the weights: float32, bfloat16 or float16.
        device: see `check_device`.

    Raises:
        UsageError: for a GPU that is not there. CheckpointError: when it does not load.
    """
    return load(checkpoint.path, dtype=getattr(torch, precision)).to(check_device(device))  # pyright: ignore[reportArgumentType]


def check_device(device: str) -> str:
    """The device to run on: "cpu" or "cuda"; "auto" is a GPU where torch sees one.

    Raises:
        UsageError: torch does not see it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("`device=cuda` was asked for, but torch sees no GPU; use `device=cpu`")
    return device


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: when it has none.
    """
    try:
        return AutoTokenizer.from_pretrained(str(checkpoint.path), local_files_only=True)
    except (OSError, ValueError, ImportError, StrictDataclassError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer that loads ({' '.join(str(error).split())[:300]}); text needs one"
        ) from error
