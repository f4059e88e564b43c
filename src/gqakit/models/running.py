"""A checkpoint as a running model, where and in which precision, and its tokenizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedModel

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError, UsageError
from gqakit.models.load import load
from gqakit.models.memory import free_memory
from gqakit.models.run_options import RunOptions, SpaceOptions, parse_size

BESIDE = 1.25
"""A model that runs whole takes this many times its weights: what it computes lies beside them."""


@dataclass(frozen=True)
class Running:
    """Where a model runs, in which precision, and in how much memory: options that were looked into.

    Attributes:
        device: torch's name of it. dtype: of weights and hidden states.
        memory: bytes of the device's memory that may be taken. host: bytes of main memory, likewise.
        blockwise: see `MemoryOptions`.
    """

    device: str
    dtype: torch.dtype
    memory: int
    host: int
    blockwise: str = "auto"

    @classmethod
    def of(cls, options: SpaceOptions, checkpoint: Checkpoint) -> Running:
        """From options; in float32 where they have no precision.

        Raises:
            UsageError: for a device that is not there.
        """
        device = check_device(options.device)
        precision = options.precision if isinstance(options, RunOptions) else "float32"
        stated = None if options.max_memory is None else parse_size(str(options.max_memory))
        return cls(
            device,
            precision_of(checkpoint, precision, device),
            stated or free_memory(device),
            stated or free_memory("cpu"),
            options.blockwise,
        )

    def whole(self, *checkpoints: Checkpoint) -> bool:
        """Whether models run whole, all of them in memory at a time."""
        if self.blockwise != "auto":
            return self.blockwise == "never"
        weights = sum(
            info.nbytes // info.torch_dtype.itemsize for each in checkpoints for info in each.tensors.values()
        )
        return BESIDE * weights * self.dtype.itemsize <= self.memory


def precision_of(checkpoint: Checkpoint, precision: str, device: str) -> torch.dtype:
    """The precision to run in: "auto" is the checkpoint's own on a GPU, and float32 on a CPU.

    Most CPUs are slower in 16 bit, and all of them round more than what is compared often differs by.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device == "cpu":
        return torch.float32
    own: Counter[torch.dtype] = Counter()
    for info in checkpoint.tensors.values():
        if info.torch_dtype.is_floating_point:
            own[info.torch_dtype] += info.nbytes
    return own.most_common(1)[0][0] if own else torch.float32


def load_model(
    checkpoint: Checkpoint, precision: str | torch.dtype = "float32", device: str = "cpu"
) -> PreTrainedModel:
    """A checkpoint as a running model.

    Args:
        checkpoint: opened.
        precision: of the weights; see `precision_of`.
        device: see `check_device`.

    Raises:
        UsageError: for a device that is not there. CheckpointError: when it does not load.
    """
    device = check_device(device)
    dtype = precision if isinstance(precision, torch.dtype) else precision_of(checkpoint, precision, device)
    return load(checkpoint.path, dtype=dtype).to(device)  # pyright: ignore[reportArgumentType]


def check_device(device: str) -> str:
    """The device to run on: "cpu", "cuda", "cuda:1", "mps"; "auto" is a GPU where torch sees one.

    Raises:
        UsageError: torch does not see it.
    """
    kind, _, number = device.partition(":")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if gpus else "mps" if mps else "cpu"
    if kind == "cuda" and not gpus:
        raise UsageError(f"`device={device}` was asked for, but torch sees no GPU; use `device=cpu`")
    if number and int(number) >= gpus:
        listed = ", ".join(f"cuda:{n}" for n in range(gpus))
        raise UsageError(f"`device={device}` was asked for, but torch sees {gpus}: {listed}")
    if kind == "mps" and not mps:
        raise UsageError("`device=mps` was asked for, but torch sees no Apple GPU; use `device=cpu`")
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
