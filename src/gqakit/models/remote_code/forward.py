"""The forward pass of a family's attention. In a checkpoint this file holds that of its own family alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

FORWARDS = {
    **{
        name: name
        for name in ("opt", "whisper", "gpt2", "gpt_neox", "modernbert", "bloom", "falcon", "mpt", "mpnet")
    },
    **{
        "stablelm": "stablelm",
        "gptj": "gptj",
        "codegen": "gptj",
        "gpt_bigcode": "gpt2",
        "moonshine": "whisper",
    },
}
"""The file in `forwards/`, by `model_type`, of the families that need one."""


def forward_of(model_type: str) -> Callable[..., Any] | None:
    """What takes the place of a family's own forward pass; None where that does for any number of KV heads."""
    name = FORWARDS.get(model_type)
    return None if name is None else importlib.import_module(f"{__package__}.forwards.{name}").forward
