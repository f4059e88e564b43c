"""The element types of the safetensors format: their codes, their widths, their torch names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BY_BITS = {
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "I64 U64 F64 C64",
    6: "F6_E2M3 F6_E3M2",
    4: "F4",
}
# Code -> bits of one element. Below eight bits several elements share a byte.
BITS = {code: bits for bits, codes in _BY_BITS.items() for code in codes.split()}

# The codes gqakit loads; float8 and narrower are refused when a checkpoint is opened.
_KINDS = {"I": "int", "U": "uint", "F": "float", "BF": "bfloat", "C": "complex"}
_TORCH_NAME = {"BOOL": "bool"} | {
    f"{kind}{bits}": f"{name}{bits}"
    for kind, name in _KINDS.items()
    for bits in (8, 16, 32, 64)
    if f"{kind}{bits}" in BITS
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
