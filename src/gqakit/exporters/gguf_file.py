"""Writing a GGUF file, tensor by tensor, and having llama.cpp's own tool quantise one."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gqakit.checkpoint import atomic_file
from gqakit.checkpoint.atomic import output_errors
from gqakit.errors import CheckpointError, MissingDependencyError, OutputError
from gqakit.exporters.gguf_model import GgufModel
from gqakit.exporters.gguf_vocab import Vocab
from gqakit.exporters.options import BUILT_IN
from gqakit.progress import Advance

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
"""GGUF's name for a file of each plain type; those of quantised files are MOSTLY_Q8_0 and the like."""

TOOL = "llama-quantize"
SUPERBLOCK = 256
"""K-quants are made of blocks of 256 elements, so they need rows of a multiple of that."""


def check_gguf() -> None:
    """Raise `MissingDependencyError` if the gguf package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("writing GGUF needs gguf: pip install 'gqakit[gguf]'") from error


def find_tool(quantise: str | None) -> str | None:
    """The path of llama.cpp's quantising tool, where this quantisation takes it.

    Raises:
        MissingDependencyError: the tool is not on the PATH.
    """
    if quantise is None or quantise in BUILT_IN:
        return None
    tool = shutil.which(TOOL)
    if tool is None:
        raise MissingDependencyError(
            f"`quantise={quantise}` is done by llama.cpp's {TOOL}, which is not on the PATH; install llama.cpp, or use "
            f"one of {', '.join(BUILT_IN)}"
        )
    return tool


def type_of(shape: Sequence[int], wanted: str) -> GGMLQuantizationType:
    """GGUF's type for a tensor where the file as a whole is of type `wanted`, such as "f16" or "Q8_0".

    Vectors stay in f32; rows that do not fill whole blocks are f16.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[wanted.upper()]
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else GGMLQuantizationType.F16


def gguf_bytes(model: GgufModel, wanted: str) -> int:
    """Bytes of all tensors of the file."""
    return sum(_nbytes(t.shape, type_of(t.shape, wanted)) for t in model.tensors.values())


def write_gguf(path: Path, model: GgufModel, vocab: Vocab, wanted: str, advance: Advance) -> None:
    """Write the file, atomically; memory for two layers' attention and one tensor is enough.

    Args:
        path: of the file, in a directory that exists.
        model, vocab: what to write.
        wanted: type of the matrices: f32, f16, bf16 or a quantisation that the gguf package makes.
        advance: called with the bytes just written.

    Raises:
        OutputError: the disk refuses. CheckpointError: a weight cannot be read or does not fit the type.
    """
    import gguf

    writer = model.writer
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES.get(wanted, f"MOSTLY_{wanted}")])
    if wanted in BUILT_IN:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocab.add_to(writer)
    kinds = {name: type_of(tensor.shape, wanted) for name, tensor in model.tensors.items()}
    for name, tensor in model.tensors.items():
        size = _nbytes(tensor.shape, kinds[name])
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, kinds[name])
    # The writer opens the temporary file by its name.
    with atomic_file(path) as file, output_errors(path), closing(writer):
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in model.tensors.items():
            data = encode(tensor.produce(), kinds[name])
            if data.dtype == np.float16 and not np.isfinite(data).all():
                raise CheckpointError(
                    f"{name} has values beyond float16, or none at all; use `dtype=bf16` or f32"
                )
            writer.write_tensor_data(data)
            advance(data.nbytes)


def encode(tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """A tensor as the bytes or numbers that the file holds."""
    import gguf

    types = gguf.GGMLQuantizationType
    # torch's own casts: gguf's goes through float32 in numpy and takes several times as long for bfloat16.
    if kind == types.BF16:
        return tensor.bfloat16().contiguous().view(torch.uint8).numpy()
    if kind == types.F16:
        return tensor.half().contiguous().numpy()
    return gguf.quants.quantize(tensor.float().contiguous().numpy(), kind)


def _nbytes(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    from gguf.quants import quant_shape_to_byte_shape

    return math.prod(quant_shape_to_byte_shape(shape, kind))


def run_tool(tool: str, plain: Path, path: Path, quantise: str) -> None:
    """Quantise the file `plain` to `path`, atomically.

    Raises:
        OutputError: the tool fails, or the disk refuses.
    """
    with atomic_file(path) as file:
        done = subprocess.run(
            [tool, str(plain), file.name, quantise], capture_output=True, text=True, check=False
        )
        if done.returncode or not Path(file.name).stat().st_size:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise OutputError(f"{path}: {TOOL} failed ({said[-1]}); nothing was written")


def odd_rows(model: GgufModel, quantise: str) -> tuple[str, ...]:
    """A word on row lengths that K-quants do not take; the tool then uses a type with more bits for those tensors."""
    widths = {tensor.shape[-1] for tensor in model.tensors.values() if len(tensor.shape) > 1}
    odd = sorted(width for width in widths if width % SUPERBLOCK)
    if not odd or quantise == "IQ4_NL":  # made of blocks of 32
        return ()
    lengths = ", ".join(f"{width:,}" for width in odd)
    return (
        f"rows of {lengths} are no multiple of {SUPERBLOCK}, as {quantise} asks (n_head × head_dim, among others): "
        f"{TOOL} gives those tensors a type with more bits",
    )
