"""The manifest of a run: kept in the output while it is being written, so that a run can be continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from gqakit import __version__
from gqakit.errors import OutputError

from .atomic import output_errors, regular, write_bytes
from .jsonio import canonical, pretty

MANIFEST_NAME = ".gqakit-convert.json"
MANIFEST_VERSION = 1


class FinishedFile(BaseModel):
    """A shard that was written whole: its bytes and their sha256 (hex)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


def is_inside(name: str) -> bool:
    """Whether a relative name, in POSIX spelling, stays in the directory that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _checked(name: str) -> str:
    if not is_inside(name):
        raise ValueError(f"{name!r} is no file in the output")
    return name


class Manifest(BaseModel):
    """What a run does (`job`, `source` fingerprint), the fingerprint of both, the shards it finished.

    `files` are all that the run writes, by relative name; runs of gqakit 0.1 do not list them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest_version: int
    gqakit_version: str
    fingerprint: str
    source: str
    job: dict[str, Any]
    finished: dict[str, FinishedFile]
    files: tuple[Annotated[str, AfterValidator(_checked)], ...] = ()

    def with_finished(self, name: str, file: FinishedFile) -> Manifest:
        """The same run with one more finished shard."""
        return self.model_copy(update={"finished": {**self.finished, name: file}})

    def differences(self, other: Manifest) -> list[str]:
        """What tells another run from this one: the options that differ, and the source."""
        keys = sorted(self.job.keys() | other.job.keys())
        found = [
            f"{key} was {self.job.get(key)!r}, is now {other.job.get(key)!r}"
            for key in keys
            if canonical(self.job.get(key)) != canonical(other.job.get(key))
        ]
        return found if self.source == other.source else [*found, "the source model differs"]


def new_manifest(job: Mapping[str, Any], source: str, files: tuple[str, ...] = ()) -> Manifest:
    """The manifest at the start of a run. Raises OutputError if `job` is not JSON."""
    try:
        # Through JSON and back, so that a tuple compares equal to the list that a file gives back.
        plain = json.loads(canonical(dict(job)))
    except (TypeError, ValueError) as error:
        raise OutputError(
            f"the job record is not JSON ({error}). Give only strings, numbers, lists, objects."
        ) from error
    mark = canonical({"job": plain, "source": source, "manifest_version": MANIFEST_VERSION})
    return Manifest(
        manifest_version=MANIFEST_VERSION,
        gqakit_version=__version__,
        fingerprint=f"sha256:{hashlib.sha256(mark).hexdigest()}",
        source=source,
        job=plain,
        finished={},
        files=files,
    )


def read_manifest(out: Path) -> Manifest | None:
    """The manifest in a directory, None if there is none. Raises OutputError if it cannot be understood."""
    path = out / MANIFEST_NAME
    with output_errors(path):
        try:
            data = regular(path).read_bytes()
        except FileNotFoundError:
            return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise OutputError(
            f"{path}: not a manifest that gqakit {__version__} can continue from ({first['msg']} at "
            f"{first['loc']}). Use --overwrite to start again, or choose another directory."
        ) from error


def write_manifest(out: Path, manifest: Manifest) -> None:
    """Write the manifest atomically. Raises OutputError if the operating system refuses."""
    write_bytes(out / MANIFEST_NAME, pretty(manifest.model_dump()))
