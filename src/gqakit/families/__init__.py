"""The families by `model_type`. A new family is one entry here and, where it needs one, a file."""

from __future__ import annotations

from gqakit.families.base import Family
from gqakit.families.layers import read_layer, tensors_of_layer
from gqakit.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from gqakit.families.spec import GROUPED_PREFIX, ModelSpec, describe_model

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}

__all__ = [
    "FAMILIES",
    "GROUPED_PREFIX",
    "Family",
    "ModelSpec",
    "describe_model",
    "read_layer",
    "tensors_of_layer",
]
