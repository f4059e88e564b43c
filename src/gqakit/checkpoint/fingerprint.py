"""What tells one model from any other: a hash of its config and of every byte of its tensors.

Hashing 13 GB takes as long as reading them, so the digests of large files are cached in the user's cache
directory, never beside the source: `$GQAKIT_CACHE`, else `$XDG_CACHE_HOME/gqakit`, else `~/.cache/gqakit`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from gqakit.errors import OutputError

from .atomic import write_bytes
from .jsonio import canonical

if TYPE_CHECKING:
    from .header import Shard, TensorInfo


class Readable(Protocol):
    """What is read of a checkpoint."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def shards(self) -> tuple[Shard, ...]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read_chunks(self, info: TensorInfo, chunk: int) -> Iterator[bytes]:
        """A tensor's bytes in blocks."""
        ...

    def read_range(self, shard: str, start: int, end: int) -> Iterator[bytes]:
        """A range of a shard's bytes in blocks."""
        ...


PREFIX, OLD_PREFIX = "model-sha256:", "sha256:"
_VOLATILE = {"transformers_version", "_name_or_path"}
_OLD_SAMPLE = 4096
_CACHED_BYTES = 16 * 2**20  # smaller files are hashed in less time than a cache is looked up
_RACY_NS = 2 * 10**9  # the coarsest clock of a file system in use (FAT): two writes may share a timestamp
_THREADS = 4  # one core hashes 1 to 2 GB per second, a fast disk reads several


def fingerprint(checkpoint: Readable) -> str:
    """`model-sha256:` and 64 hex digits over the config without its volatile keys and every tensor.

    How the tensors are distributed over shards, and their order, do not matter.
    Raises CheckpointError if a file cannot be read.
    """
    digests: dict[str, str] = {}
    for shard in checkpoint.shards:
        digests |= _digests(checkpoint, shard)
    rows = [[i.name, i.dtype, i.shape, digests[i.name]] for i in _by_name(checkpoint)]
    return PREFIX + hashlib.sha256(canonical([_stable(checkpoint.config), rows])).hexdigest()


def old_fingerprint(checkpoint: Readable) -> str:
    """`sha256:` and 64 hex digits, as files of gqakit 0.1 hold it: of each tensor the first 4 KiB alone.

    It does not tell apart models that differ elsewhere, so nothing new is written with it.
    """
    infos = _by_name(checkpoint)
    digest = hashlib.sha256(canonical(_stable(checkpoint.config)))
    digest.update(canonical([[info.name, info.dtype, info.shape] for info in infos]))
    for info in infos:
        for block in checkpoint.read_range(info.shard, info.start, min(info.end, info.start + _OLD_SAMPLE)):
            digest.update(block)
    return OLD_PREFIX + digest.hexdigest()


def _by_name(checkpoint: Readable) -> list[TensorInfo]:
    return sorted(checkpoint.tensors.values(), key=lambda info: info.name)


def _stable(value: Any) -> Any:
    """A config without the keys that change when the same model is saved again or moved."""
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if key not in _VOLATILE}
    return value


def _digests(checkpoint: Readable, shard: Shard) -> dict[str, str]:
    """The sha256 of every tensor of a shard, from the cache where the file is the one that was hashed."""
    path = checkpoint.path / shard.name
    key = _key(path) if shard.size >= _CACHED_BYTES else None
    known = _load(key) if key is not None else {}
    if known.keys() == {info.name for info in shard.tensors}:
        return known

    def digest(info: TensorInfo) -> str:
        hashed = hashlib.sha256()
        for block in checkpoint.read_chunks(info, 2**20):
            hashed.update(block)
        return hashed.hexdigest()

    with ThreadPoolExecutor(_THREADS) as pool:  # hashlib and read() release the interpreter's lock
        made = dict(zip((i.name for i in shard.tensors), pool.map(digest, shard.tensors), strict=True))
    if key is not None and key == _key(path):
        _save(key, made)
    return made


def _key(path: Path) -> _Key | None:
    """A file as it is now: any write changes one of these."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _Key(
        path=str(path.resolve()),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,  # which no program can set back
        inode=(stat.st_dev, stat.st_ino),
    )


def _cached(key: _Key) -> Path:
    name = hashlib.sha256(key.path.encode(errors="surrogateescape")).hexdigest()
    return cache_directory() / "digests" / f"{name}.json"


def _load(key: _Key) -> dict[str, str]:
    """The digests of a file; none where they are not known or cannot be read."""
    try:
        entry = _Entry.model_validate_json(_cached(key).read_bytes())
    except (OSError, ValidationError):
        return {}
    return entry.tensors if entry.file == key else {}


def _save(key: _Key, tensors: dict[str, str]) -> None:
    """Keep digests, unless the file is so new that another write could leave its times as they are."""
    if time.time_ns() - max(key.mtime_ns, key.ctime_ns) < _RACY_NS:
        return
    path = _cached(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, _Entry(file=key, tensors=tensors).model_dump_json().encode())
    except (OSError, OutputError, ValueError):  # a full disk, a read-only home: it is hashed again next time
        return


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: tuple[int, int]


class _Entry(BaseModel):
    """A file of the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: _Key
    tensors: dict[str, str]


def cache_directory() -> Path:
    """Where gqakit keeps what it can make again."""
    if given := os.environ.get("GQAKIT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "gqakit"
