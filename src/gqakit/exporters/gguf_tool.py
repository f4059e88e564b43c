"""Quantisations that only llama.cpp's own tool makes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from gqakit.checkpoint.atomic import PARTIAL, output_errors, sync_directory
from gqakit.errors import OutputError
from gqakit.exporters.gguf_types import SUPERBLOCK, TOOL


def run_tool(tool: str, plain: Path, path: Path, quantise: str) -> None:
    """Quantise the file `plain` to `path`, atomically.

    Raises:
        OutputError: the tool fails, or the disk refuses.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        done = subprocess.run(
            [tool, str(plain), str(partial), quantise], capture_output=True, text=True, check=False
        )
        if done.returncode or not partial.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise OutputError(f"{path}: {TOOL} failed ({said[-1]}); nothing was written")
        with output_errors(path):
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def odd_rows(widths: set[int], quantise: str) -> tuple[str, ...]:
    """A word on row lengths that K-quants do not take; the tool then uses a type with more bits for those tensors."""
    odd = sorted(width for width in widths if width % SUPERBLOCK)
    if not odd or quantise == "IQ4_NL":
        return ()
    lengths = ", ".join(f"{width:,}" for width in odd)
    return (
        f"rows of {lengths} are no multiple of {SUPERBLOCK}, as {quantise} asks (n_head × head_dim, among others): "
        f"{TOOL} gives those tensors a type with more bits",
    )
