"""Reading and writing the JSON of a checkpoint: strict in what it takes, canonical in what it hashes."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from gqakit.errors import CheckpointError

from .atomic import regular

POINTER_BYTES = 1024  # the format of Git LFS pointers allows no more
_POINTER = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(data: bytes, path: Path) -> None:
    """Raises CheckpointError if a file begins as what Git LFS leaves in place of a large file."""
    if data.startswith(_POINTER):
        size = next(
            (line.split()[1] for line in data.decode(errors="replace").splitlines() if line[:5] == "size "),
            "?",
        )
        raise CheckpointError(
            f"{path}: is a Git LFS pointer of {len(data)} bytes, not the file of {size} bytes that it stands for. "
            "Run `git lfs pull` where it was cloned, or download the file."
        )


def read_bytes(path: Path) -> bytes:
    """A whole small file. Raises CheckpointError if it cannot be read."""
    try:
        data = regular(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Check the path and its rights."
        ) from error
    check_no_pointer(data, path)
    return data


def parse_object(data: bytes, where: str, *, distinct: bool = False) -> dict[str, Any]:
    """A JSON object in UTF-8, with `distinct` of distinct keys. Raises CheckpointError beginning with `where`."""
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CheckpointError(
            f"{where}: begins with a byte order mark, which transformers does not read. Save it as UTF-8 without one."
        )
    try:
        value = json.loads(data, object_pairs_hook=_distinct if distinct else None)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: not valid JSON ({error}) in {len(data)} bytes. "
            "The file is truncated or corrupt; fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: holds a JSON {type(value).__name__}, expected an object {{...}}.")
    return value


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, ASCII.

    Raises TypeError or ValueError if `value` is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def pretty(value: Any) -> bytes:
    """The spelling that is written for people: two spaces of indent, a final newline, keys in their order."""
    return (json.dumps(value, indent=2) + "\n").encode()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers disagree on which of two equal keys wins, so a file with both means different tensors to each.
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {repeated!r} occurs twice")
    return made
