"""Where a command works: one process for each output, and work directories beside it.

A command that needs more than one run's memory keeps its state in a directory beside the output, such as
`OUT.repair`. gqakit takes such a directory only if it is absent, empty or marked as its own, and removes from
it only what the mark lists: a directory of that name that belongs to somebody else is never touched.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from gqakit.errors import OutputError

from .atomic import PARTIAL, output_errors, write_bytes
from .jsonio import pretty

MARKER = ".gqakit-work.json"
_held = threading.local()


class _Marker(BaseModel):
    """The mark of a work directory: patterns of the relative names that gqakit writes there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gqakit_work: Literal[1] = 1
    files: frozenset[str]


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Keep other runs from writing to `out`; the same thread may lock it again.

    The operating system drops the lock with the process, however that ends: what a killed run leaves is no
    lock. The file lies beside `out`, names its holder, and goes at the end.

    Raises:
        OutputError: another run holds it, or the lock cannot be made.
    """
    place = out.resolve()
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    if place in held:
        yield
        return
    path = _lock_file(place)
    made = [folder for folder in path.parents if not folder.exists()]
    lock = FileLock(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"{out}: in use by another run ({_holder(path)}). Wait for it or stop it, or choose another output."
            ) from None
        with suppress(PermissionError):  # Windows writes to no locked file
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    held.add(place)
    try:
        yield
    finally:
        held.discard(place)
        try:
            # Before the release: whoever locks the file after it is gone finds that out and makes a new one.
            with suppress(OSError):  # Windows unlinks no open file
                path.unlink(missing_ok=True)
        finally:
            lock.release()
        with suppress(OSError):  # folders that were made for the lock alone
            for folder in made:
                folder.rmdir()


def _lock_file(place: Path) -> Path:
    """Beside the output, where processes on other machines look too; where that cannot be written, among temporary files."""
    folder = next(parent for parent in place.parents if parent.exists())
    if os.access(folder, os.W_OK):
        return place.with_name(f".{place.name}.gqakit-lock")
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gqakit-{name}.lock"


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"


@contextmanager
def claimed_directory(out: Path, suffix: str, files: Iterable[str], *, keep: bool = True) -> Iterator[Path]:
    """`OUT<suffix>`, claimed for this run, with `out` locked; removed at the end.

    Args:
        files: patterns (as of `fnmatch`, where `*` crosses folders) of what the run writes there, the only
            files that are ever removed.
        keep: leave it after an error, so that the same command can continue.

    Raises:
        OutputError: `out` is in use, or the directory belongs to somebody else.
    """
    path = out.with_name(out.name + suffix)
    with output_lock(out):
        claim(path, files)
        try:
            yield path
        except BaseException:
            if not keep:
                remove_claimed(path)
            raise
        remove_claimed(path)


def claim(path: Path, files: Iterable[str]) -> None:
    """Mark a directory as gqakit's, or add to the files that the mark lists.

    Raises:
        OutputError: it is not gqakit's: something else lies there.
    """
    known = claimed(path)
    if known is None and os.path.lexists(path):
        foreign = path.is_symlink() or not path.is_dir()
        if foreign or any(entry.name != MARKER + PARTIAL for entry in path.iterdir()):
            raise OutputError(
                f"{path}: is in the way. gqakit keeps unfinished work under this name, and this is not its own. "
                "Move it, or choose another output."
            )
    listed = (known or frozenset()) | {*files}
    if listed == known:
        return
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    write_bytes(path / MARKER, pretty({"gqakit_work": 1, "files": sorted(listed)}))


def claimed(path: Path) -> frozenset[str] | None:
    """The patterns that the mark of a directory lists, None if it has none that gqakit wrote."""
    try:
        return _Marker.model_validate_json((path / MARKER).read_bytes()).files
    except (OSError, ValidationError):
        return None


def clear_claimed(path: Path) -> None:
    """Remove what the mark lists, but not the mark. Raises OutputError if the operating system refuses."""
    with output_errors(path):
        # config.json first: from then on a checkpoint in it is none that loads.
        for name in sorted(owned(path), key=lambda name: (name != "config.json", name)):
            (path / name).unlink()
        for folder, folders, _ in os.walk(path, topdown=False):
            for place in (Path(folder) / name for name in folders):
                with suppress(OSError):  # something of somebody's is in it
                    place.rmdir()


def owned(path: Path) -> set[str]:
    """The files in a directory, by relative name, that its mark lists; none where it has no mark."""
    patterns, found = claimed(path) or frozenset(), set[str]()
    for folder, folders, names in os.walk(path):  # which follows no links
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found |= {(Path(folder) / name).relative_to(path).as_posix() for name in [*names, *links]}
    return {n for n in found if any(fnmatchcase(n.removesuffix(PARTIAL), pattern) for pattern in patterns)}


def remove_claimed(path: Path) -> None:
    """Remove a work directory; files in it that gqakit did not write stay, and the directory with them."""
    clear_claimed(path)
    with output_errors(path), suppress(FileNotFoundError):
        (path / MARKER).unlink()
        with suppress(OSError):
            path.rmdir()
