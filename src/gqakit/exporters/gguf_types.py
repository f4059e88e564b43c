"""Element types of a GGUF file: which there are, which tensors get them, and the bytes they become."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gqakit.errors import MissingDependencyError, UsageError, unknown_name

if TYPE_CHECKING:
    import numpy as np

DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""Option by safetensors code."""

PLAIN = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
"""GGUF's file type of each --dtype."""

BUILT_IN = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
"""Written here, by the gguf package."""

BY_TOOL = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""Made by llama.cpp's own tool from a file that is written here."""

TOOL = "llama-quantize"
SUPERBLOCK = 256
"""K-quants need rows of a multiple of so many elements."""


def load_gguf() -> Any:
    """The gguf package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError("writing GGUF needs gguf: pip install 'gqakit[gguf]'") from error
    return gguf


def check_types(dtype: str | None, quantise: str | None) -> str | None:
    """The path of the quantising tool if it is needed.

    Raises:
        UsageError: an unknown name, or both are given. MissingDependencyError: the tool is not on the PATH.
    """
    if dtype is not None and dtype not in PLAIN:
        raise unknown_name("dtype", dtype, PLAIN)
    if quantise is None:
        return None
    if quantise not in (*BUILT_IN, *BY_TOOL):
        raise unknown_name("quantisation", quantise, (*BUILT_IN, *BY_TOOL))
    if quantise in BUILT_IN:
        if dtype is not None:
            raise UsageError(f"--dtype {dtype} and --quantise {quantise} contradict each other; give one")
        return None
    tool = shutil.which(TOOL)
    if tool is None:
        raise MissingDependencyError(
            f"--quantise {quantise} is done by llama.cpp's {TOOL}, which is not on the PATH; install llama.cpp, or use "
            f"one of {', '.join(BUILT_IN)}"
        )
    return tool


def type_of(gguf: Any, shape: tuple[int, ...], wanted: str) -> Any:
    """GGUF's type for a tensor where the file as a whole is of type `wanted`, such as "f16" or "Q8_0".

    Vectors stay in f32; rows that do not fill whole blocks are f16.
    """
    types = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    kind = types[wanted.upper()]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    return kind if shape[-1] % block == 0 else types.F16


def encode(gguf: Any, tensor: Tensor, kind: Any) -> np.ndarray[Any, Any]:
    """A tensor as the bytes or numbers that the file holds."""
    types = gguf.GGMLQuantizationType
    if kind == types.F32:
        return tensor.float().contiguous().numpy()
    if kind == types.F16:
        return tensor.half().contiguous().numpy()
    if kind == types.BF16:
        return tensor.bfloat16().contiguous().view(torch.uint8).numpy()
    return gguf.quants.quantize(tensor.float().contiguous().numpy(), kind)


def nbytes_of(gguf: Any, shape: tuple[int, ...], kind: Any) -> int:
    """Bytes of a tensor of this type."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = 1
    for length in shape:
        count *= length
    return count // block * size
