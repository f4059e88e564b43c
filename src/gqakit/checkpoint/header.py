"""The safetensors header: what one shard file holds and where, read with every check and written again.

Layout of a file: 8 bytes (little endian) with the header's length N, N bytes of JSON, then the tensors' bytes
one after another without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.errors import CheckpointError

from . import dtypes
from .atomic import regular
from .jsonio import POINTER_BYTES, check_no_pointer, parse_object

if TYPE_CHECKING:
    import torch

_PREFIX = 8
_MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
_METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: safetensors dtype code, shape, and its absolute byte range `[start, end)` in `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.start

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype of the elements."""
        return dtypes.torch_dtype(self.dtype)


@dataclass(frozen=True)
class Shard:
    """One safetensors file: `header_bytes` before the data, `size` in all, tensors in byte order."""

    name: str
    header_bytes: int
    size: int
    metadata: dict[str, str] | None
    tensors: tuple[TensorInfo, ...]


def read_shard(path: Path) -> Shard:
    """Parse and check the header of one file; no tensor data is read.

    Raises CheckpointError if the file is unreadable, truncated or too long, or if its header is malformed,
    names an unknown dtype, or places tensors with gaps, overlaps or sizes that disagree with their shapes.
    """
    try:
        with regular(path).open("rb") as file:
            size = path.stat().st_size
            begin = file.read(POINTER_BYTES)
            check_no_pointer(begin, path)
            length = _header_length(begin[:_PREFIX], size, path)
            file.seek(_PREFIX)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Check the path and its rights."
        ) from error
    header = parse_object(raw, f"{path} (header)", distinct=True)
    metadata = _metadata(header.pop(_METADATA, None), path)
    base = _PREFIX + length
    tensors = [_tensor(name, entry, path, base) for name, entry in header.items()]
    tensors.sort(key=lambda info: (info.start, info.end))
    _check_contiguous(tensors, path, base, size)
    return Shard(path.name, base, size, metadata, tuple(tensors))


def build_header(metadata: Mapping[str, str] | None, tensors: Iterable[TensorInfo]) -> bytes:
    """The bytes before the data: length, compact JSON in the given order, padded with spaces to 8 bytes.

    The byte ranges of `tensors` count from the first byte of data, not of the file.
    """
    entries: dict[str, Any] = {} if metadata is None else {_METADATA: dict(metadata)}
    for info in tensors:
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_PREFIX, "little") + text


def tensor_nbytes(dtype: str, shape: Iterable[int]) -> int | None:
    """Bytes of a tensor, or None if elements narrower than a byte do not fill whole bytes."""
    bits = math.prod(shape) * dtypes.BITS[dtype]
    return bits // 8 if bits % 8 == 0 else None


def _header_length(prefix: bytes, size: int, path: Path) -> int:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _PREFIX or _PREFIX + length > size:
        need = (
            f"{_PREFIX + length} for its header"
            if len(prefix) == _PREFIX
            else f"{_PREFIX} for a length field"
        )
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file: it has {size} bytes, expected at least {need}. "
            "Fetch the file again."
        )
    if length > _MAX_HEADER:
        raise CheckpointError(
            f"{path}: corrupt: its header claims {length} bytes, the format allows {_MAX_HEADER}. Fetch "
            "it again."
        )
    return length


def _metadata(value: Any, path: Path) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(
            f"{path}: corrupt header: {_METADATA} is not an object of strings. Fetch it again."
        )
    return value


def _tensor(name: str, entry: Any, path: Path, base: int) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where}: corrupt header entry {entry!r}, expected dtype, shape and data_offsets."
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes.BITS:
        raise CheckpointError(f"{where}: unknown dtype {dtype!r}, expected one of {', '.join(dtypes.BITS)}.")
    if not _sizes(shape):
        raise CheckpointError(f"{where}: corrupt shape {shape!r}, expected a list of integers >= 0.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: corrupt data_offsets {offsets!r}, expected [begin, end].")
    expected = tensor_nbytes(dtype, shape)
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{where}: corrupt: {dtype} of shape {shape} takes {expected} bytes, "
            f"its data_offsets {offsets} span {offsets[1] - offsets[0]}. Fetch the file again."
        )
    if not name.isascii():
        _check_utf8(name, path)
    return TensorInfo(name, dtype, tuple(shape), path.name, base + offsets[0], base + offsets[1])


def _sizes(value: Any) -> bool:
    # bool is an int to isinstance; `true` is no size.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_utf8(name: str, path: Path) -> None:
    # JSON can spell half of a surrogate pair, which no UTF-8 file can hold.
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{path}: corrupt header: the tensor name {name!r} is not Unicode text."
        ) from error


def _check_contiguous(tensors: list[TensorInfo], path: Path, base: int, size: int) -> None:
    at = base
    for info in tensors:
        if info.start != at:
            kind = "overlaps the one before" if info.start < at else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: corrupt: tensor {info.name!r} {kind}: it begins at byte {info.start}, "
                f"expected {at}. Fetch the file again."
            )
        at = info.end
    if at != size:
        kind = "truncated" if size < at else "corrupt (trailing bytes)"
        raise CheckpointError(
            f"{path}: {kind}: it has {size} bytes, its header describes {at}. Fetch the file again."
        )
