"""What a training runs on: the processes of a launch, and the versions of libraries that its result depends on."""

from __future__ import annotations

import platform
from typing import Any

import torch

from gqakit.errors import MissingDependencyError, UsageError


def launched(device: str, alone: str = "") -> Any:
    """accelerate's `PartialState`: the processes of the launch.

    Args:
        device: "cpu" or "cuda". alone: the command, where it runs in one process alone.

    Raises:
        MissingDependencyError: accelerate is not installed. UsageError: there are several processes.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependencyError(
            "training needs the 'train' extra: pip install 'gqakit[train]'"
        ) from error
    found = PartialState(cpu=device == "cpu")
    if alone and found.num_processes > 1:
        raise UsageError(f"{alone} runs in one process; start it without a launcher")
    return found


def versions() -> dict[str, str]:
    """Of what a training's result depends on."""
    import accelerate
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
