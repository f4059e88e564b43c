"""The element types of the safetensors format: their codes, their widths, their torch names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Code -> bits of one element. Below eight bits several elements share a byte.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}

# The codes gqakit loads; float8 and narrower are refused when a checkpoint is opened.
_TORCH_NAME = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}
_CODE = {name: code for code, name in _TORCH_NAME.items()}


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a safetensors code. Raises KeyError for the float8 family and narrower."""
    import torch

    return getattr(torch, _TORCH_NAME[code])


def dtype_code(dtype: torch.dtype) -> str:
    """The safetensors code of a torch dtype. Raises KeyError for a dtype that gqakit does not write."""
    return _CODE[str(dtype).removeprefix("torch.")]


def is_writable(code: str) -> bool:
    """Whether tensors of this code can be loaded and written by gqakit."""
    return code in _TORCH_NAME
