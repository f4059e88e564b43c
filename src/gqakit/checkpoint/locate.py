"""From what the user typed to a local directory: a path, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import cast

from gqakit.errors import CheckpointError

from .diagnose import check_directory

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
# Weights in safetensors and what sidefiles.py copies; skipped are other spellings of the same weights.
_PATTERNS = [
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.model.*", "*.tiktoken", "*.jinja", "*.md", "*.py"),
    *("vocab.*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
]
_SKIPPED = ["*/*.safetensors", "consolidated*.safetensors", "original/*", "onnx/*"]


def locate(model: str | Path) -> Path:
    """The directory of a model: itself if it exists, else the local snapshot of the hub repository.

    Raises CheckpointError if it is neither a directory nor reachable on the hub, or a file.
    """
    path = Path(os.path.expanduser(model))
    if os.path.lexists(path):  # unlike Path.exists, False also for a name too long to be a path
        check_directory(path)
        return path
    if not _HUB_NAME.fullmatch(str(model)):
        raise CheckpointError(
            f"{path}: no such directory. Give a directory in Hugging Face layout, or a hub name such as "
            "org/name or org/name@revision."
        )
    return _from_hub(str(model))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = name.partition("@")
    # The hub's HTTP library has changed (requests, httpx); its own base of errors is a base of this class.
    transport = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=_PATTERNS, ignore_patterns=_SKIPPED
        )
        return Path(found)
    except (OSError, ValueError, *transport) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{name}: neither a directory here nor reachable on the Hugging Face hub ({reason[0]}). "
            "Check the name, the network and (for gated models) `hf auth login`, or give a local directory."
        ) from error
