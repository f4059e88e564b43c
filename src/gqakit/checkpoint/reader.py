"""A checkpoint read lazily: opening it reads headers only, tensors are read one at a time.

Plain file reads, never mmap: the pages of a mapping count as resident memory of the process.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.errors import CheckpointError

from .diagnose import check_weights_named, weight_index
from .fingerprint import OLD_PREFIX, fingerprint, old_fingerprint
from .header import Shard, TensorInfo, read_shard
from .index import SINGLE_NAME, Index, check_agreement, check_shards_exist, read_index
from .jsonio import parse_object, read_bytes
from .locate import locate
from .quantised import check_not_quantised

if TYPE_CHECKING:
    import torch

CHUNK = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model directory in Hugging Face layout.

    `config` is config.json parsed and `config_bytes` as stored; `shards` are sorted by file name; `tensors`
    maps every name to its place; `index` is None for a single `model.safetensors`.
    """

    path: Path
    config: dict[str, Any]
    config_bytes: bytes
    shards: tuple[Shard, ...]
    tensors: dict[str, TensorInfo]
    index: Index | None

    @classmethod
    def open(cls, model: str | Path) -> Checkpoint:
        """Open a directory, or a hub name through the local cache, and check every header.

        Raises CheckpointError if it is missing, incomplete, corrupt, pickled, GGUF, quantised or no
        checkpoint.
        """
        path = locate(model)
        index_path = weight_index(path)
        config_bytes = read_bytes(path / "config.json")
        config = parse_object(config_bytes, str(path / "config.json"))
        check_weights_named(path, config)
        index = None if index_path is None else read_index(index_path)
        if index is not None:
            check_shards_exist(path, index)
        names = [SINGLE_NAME] if index is None else index.shard_names
        shards = tuple(read_shard(path / name) for name in names)
        if index is not None:
            check_agreement(path, index, shards)
        tensors = {info.name: info for shard in shards for info in shard.tensors}
        if not tensors:
            raise CheckpointError(f"{path}: the weight files hold no tensors. Fetch them again.")
        check_not_quantised(path, config, tensors.values())
        return cls(path, config, config_bytes, shards, tensors, index)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(info.nbytes for info in self.tensors.values())

    def load(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, in its stored dtype and shape; only its own bytes are read.

        Raises CheckpointError if no tensor has this name (with near matches) or the file no longer holds it.
        """
        import torch

        info = self.info(name)
        buffer = torch.empty(info.nbytes, dtype=torch.uint8)
        view, at = buffer.numpy().data, 0
        for block in self.read_chunks(info):
            view[at : at + len(block)] = block
            at += len(block)
        return buffer.view(info.torch_dtype).reshape(info.shape)

    def info(self, name: str) -> TensorInfo:
        """Where and what a tensor is. Raises CheckpointError with near matches if no tensor has this name."""
        if name in self.tensors:
            return self.tensors[name]
        near = difflib.get_close_matches(name, self.tensors, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(f"{self.path}: no tensor {name!r} among its {len(self.tensors)} tensors.{hint}")

    def read_chunks(self, info: TensorInfo, chunk: int = CHUNK) -> Iterator[bytes]:
        """The bytes of one tensor in blocks of at most `chunk` bytes.

        Raises CheckpointError if the file has become shorter since it was opened.
        """
        return self.read_range(info.shard, info.start, info.end, chunk)

    def read_range(self, shard: str, start: int, end: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """The bytes `[start, end)` of a shard file, in blocks, as `read_chunks` gives those of a tensor."""
        path = self.path / shard
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                while start < end:
                    block = file.read(min(chunk, end - start))
                    if not block:
                        raise CheckpointError(
                            f"{path}: ends at byte {start}, expected {end}: it was changed while it was "
                            "read. Leave the source alone and run again."
                        )
                    start += len(block)
                    yield block
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error.strerror}). Check the source's disk."
            ) from error

    def fingerprint(self, like: str = "") -> str:
        """What tells this model from any other; every tensor's every byte counts. See `fingerprint.py`.

        Args:
            like: a fingerprint to compare with; if it is of the form that gqakit 0.1 wrote, so is the result.
        """
        return self._old_fingerprint if like.startswith(OLD_PREFIX) else self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self)

    @cached_property
    def _old_fingerprint(self) -> str:
        return old_fingerprint(self)
