"""Write one planned shard: header, then tensor after tensor, hashing what is written.

At most one produced tensor and one block are in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gqakit.errors import OutputError

from . import dtypes
from .atomic import atomic_file, output_errors
from .header import TensorInfo
from .layout import PlannedShard, Replacement
from .manifest import FinishedFile
from .reader import CHUNK, Checkpoint

if TYPE_CHECKING:
    import torch

Progress = Callable[[int], None]


def write_shard(source: Checkpoint, shard: PlannedShard, out: Path, progress: Progress) -> FinishedFile:
    """Write `shard` into `out` atomically; returns its size and sha256. `progress` gets each block's bytes.

    Raises CheckpointError if the source cannot be read, OutputError if the disk refuses or a produced tensor
    has not the planned shape and dtype; what `produce` raises passes through. In each case no file appears.
    """
    path = out / shard.name
    with atomic_file(path) as file:
        sink = _Sink(path, file, progress)
        for block in _blocks(source, shard):
            sink.write(block)
    return FinishedFile(size=sink.size, sha256=sink.digest.hexdigest())


def is_finished(path: Path, planned_size: int, record: FinishedFile) -> bool:
    """Whether a file still holds what was recorded of it. Raises OutputError if it cannot be read."""
    if not path.is_file() or not path.stat().st_size == record.size == planned_size:
        return False
    with output_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


class _Sink:
    def __init__(self, path: Path, file: BinaryIO, progress: Progress) -> None:
        self.path, self.file, self.progress = path, file, progress
        self.size, self.digest = 0, hashlib.sha256()

    def write(self, block: bytes | memoryview) -> None:
        with output_errors(self.path):
            self.file.write(block)
        self.digest.update(block)
        self.size += len(block)
        self.progress(len(block))


def _blocks(source: Checkpoint, shard: PlannedShard) -> Iterator[bytes | memoryview]:
    if shard.header is None:
        yield from source.read_range(shard.name, 0, shard.size)
        return
    yield shard.header
    for tensor in shard.tensors:
        if isinstance(tensor.content, Replacement):
            yield from _produced_blocks(tensor.info, tensor.content)
        else:
            yield from source.read_chunks(tensor.content)


def _produced_blocks(info: TensorInfo, replacement: Replacement) -> Iterator[memoryview]:
    tensor = replacement.produce().detach()
    if tuple(tensor.shape) != info.shape or tensor.dtype != info.torch_dtype:
        raise OutputError(
            f"{info.shard}: tensor {info.name!r} was produced as {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}, "
            f"planned was {dtypes.torch_dtype(info.dtype)} of shape {info.shape}. This is a bug in its "
            "producer."
        )
    # In slabs of rows, so that a transposed view or a tensor on a GPU is not copied whole.
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    step = max(1, CHUNK * len(rows) // max(1, info.nbytes))
    for first in range(0, len(rows), step):
        yield _raw(rows[first : first + step])


def _raw(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
