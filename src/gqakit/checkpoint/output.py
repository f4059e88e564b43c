"""Whether an output directory can be used, and clearing one that is to be overwritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gqakit.errors import OutputError

from .atomic import PARTIAL, output_errors
from .index import listed
from .manifest import MANIFEST_NAME, Manifest, new_manifest, read_manifest
from .reader import Checkpoint
from .sidefiles import TEMPLATES_FOLDER, is_side_file
from .workspace import MARKER, claimed, owned

_REPLACEABLE = (
    *("config.json", "README.md", "*.safetensors", "*.safetensors.index.json", f"*{PARTIAL}"),
    *("*.safetensors.partial", "config.json.partial", MANIFEST_NAME + ".partial"),  # of gqakit 0.1
    *("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    *(
        "gqakit-*.json",
        "gqakit-*.jsonl",
        "*_gqakit.py",
        "modeling_*.py",
        "configuration_*.py",
        "modular_*.py",
        "tokenization_*.py",
        "*processing_*.py",
    ),
)

# Traces of a run that was killed before it had written anything, and the mark of a work directory.
_OWN = (MANIFEST_NAME + PARTIAL, MANIFEST_NAME + ".partial", MARKER, MARKER + PARTIAL)


def check_output(
    source: Checkpoint,
    out: Path,
    overwrite: bool = False,
    *,
    job: Mapping[str, Any] | None = None,
    needed_bytes: int = 0,
) -> Manifest | None:
    """Check that `out` can take a converted `source`; nothing is written or removed.

    Args:
        job: the run's options, to tell whether an unfinished output in `out` is of the same run. Without it
            any readable manifest passes, and the write itself will look.
        needed_bytes: size of the whole output (`output_bytes`), compared with the free space.

    Returns the manifest of the unfinished run that would be continued, or None for a fresh start.

    Raises OutputError if `out` is, contains or lies in the source (whatever `overwrite` says), is a file, is
    not empty without being a run to continue (unless `overwrite`, and then only if it is a checkpoint), or
    if the disk is too full.
    """
    check_apart(source.path, out)
    if not os.path.lexists(out):
        _check_space(out, needed_bytes, 0)
        return None
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a directory or a free name. Choose another output.")
    with output_errors(out):
        names = sorted(entry.name for entry in out.iterdir() if entry.name not in _OWN)
    resumed = _unfinished(source, out, overwrite, job) if MANIFEST_NAME in names else None
    if resumed is None and names:
        _check_may_clear(out, names, overwrite)
    _check_space(out, needed_bytes, sum((out / name).lstat().st_size for name in clearable(out)))
    return resumed


def clearable(out: Path) -> set[str]:
    """What may be removed from an output: what only a checkpoint has, and what an unfinished run noted as its own."""
    found = {path.name for path in out.iterdir() if _is_checkpoints(path.name)}
    found |= {f"{TEMPLATES_FOLDER}/{path.name}" for path in (out / TEMPLATES_FOLDER).glob("*.jinja")}
    found |= owned(out) - {MANIFEST_NAME}
    with suppress(OutputError):
        manifest = read_manifest(out)
        found |= set() if manifest is None else {*manifest.files}
    home = out.resolve()
    # A folder behind a symlink belongs to someone else.
    inside = {name for name in found if (out / name).parent.resolve().is_relative_to(home)}
    return {name for name in inside if (out / name).is_symlink() or (out / name).is_file()}


def clear_output(out: Path, names: set[str]) -> None:
    """Remove files of an output, as `clearable` names them. Raises OutputError if the operating system refuses."""
    # config.json goes first: from then on the directory is no complete checkpoint.
    for name in sorted(names, key=lambda name: (name != "config.json", name)):
        path = out / name
        with output_errors(path):
            path.unlink(missing_ok=True)
        if path.parent != out:
            with suppress(OSError):
                path.parent.rmdir()


def check_apart(source: Path, out: Path) -> None:
    """Raises OutputError if `out` is, contains or lies in the source."""
    for inner, outer, said in ((out, source, "lies inside"), (source, out, "contains")):
        inner = inner.resolve()
        for folder in (inner, *inner.parents):
            if not _same(folder, outer):
                continue
            relation = "is" if folder == inner else said
            raise OutputError(
                f"{out}: {relation} the source {source}, which is never written to. Choose a directory "
                "apart from it."
            )


def _same(left: Path, right: Path) -> bool:
    # By inode, not by name: file systems that fold case and bind mounts give one directory several names.
    return left.exists() and right.exists() and left.samefile(right)


def _unfinished(
    source: Checkpoint, out: Path, overwrite: bool, job: Mapping[str, Any] | None
) -> Manifest | None:
    """The manifest in `out` if this run continues it, None if it is to be overwritten."""
    try:
        found = read_manifest(out)
    except OutputError:
        if overwrite:
            return None
        raise
    if found is None or job is None:
        return found
    asked = new_manifest(job, source.fingerprint(found.source))
    if found.fingerprint == asked.fingerprint:
        return found
    if overwrite:
        return None
    why = listed(found.differences(asked)) or "the manifest's version differs"
    raise OutputError(
        f"{out}: holds an unfinished output of another run ({why}). Give the same options to continue it, "
        "choose another directory, or use --overwrite to start again."
    )


def _check_may_clear(out: Path, names: list[str], overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(
            f"{out}: is not empty (holds {listed(names)}), expected an empty or new directory. "
            "Choose another one, or use --overwrite to replace the checkpoint in it."
        )
    if "config.json" not in names and MANIFEST_NAME not in names and claimed(out) is None:
        raise OutputError(
            f"{out}: is not a checkpoint (holds {listed(names)} but no config.json), so --overwrite does "
            "not clear it. Choose another directory."
        )


def _check_space(out: Path, needed: int, reclaimed: int) -> None:
    folder = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    with output_errors(folder):
        free = shutil.disk_usage(folder).free + reclaimed
    if needed > free:
        raise OutputError(
            f"{out}: the output takes {_gib(needed)}, the disk has {_gib(free)} free. "
            "Free some space or choose another disk."
        )


def _is_checkpoints(name: str) -> bool:
    """Whether only a checkpoint has files of this name; no others are ever removed."""
    return is_side_file(name) or any(fnmatchcase(name, pattern) for pattern in _REPLACEABLE)


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB ({nbytes} bytes)"
