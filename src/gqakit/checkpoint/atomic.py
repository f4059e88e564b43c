"""Files that are either whole or absent: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gqakit.errors import OutputError

PARTIAL = ".gqakit-partial"  # a name that nobody else uses: what lies under it may be replaced


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error of writing `path` into an OutputError that names both."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). "
            "Check free space and rights, or choose another output."
        ) from error


def regular(path: Path) -> Path:
    """The path itself. Raises OSError if it is a device, a pipe or a socket: reading one may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file open for writing that appears under `path` only if the block ends without an error.

    The bytes go to `<path>.gqakit-partial` in the same directory, which must exist; on any error, KeyboardInterrupt
    included, it is removed and a previous `path` stays as it was. Raises OutputError if the operating system
    refuses to open, flush or rename; errors of the block itself pass through.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    with output_errors(path):
        file = partial.open("wb")
    try:
        try:
            yield file
            with output_errors(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            # A full disk makes close() fail as well; the partial file goes all the same.
            with output_errors(path):
                file.close()
        with output_errors(path):
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a whole file atomically. Raises OutputError if the operating system refuses."""
    path = Path(path)
    with atomic_file(path) as file, output_errors(path):
        file.write(data)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OutputError if the operating system refuses."""
    if os.name == "nt":  # Windows opens no directories
        return
    with output_errors(directory):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
