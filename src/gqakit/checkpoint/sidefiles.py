"""The files beside the weights that a converted model shares with its source, copied byte for byte.

Tokenizer, processors, generation defaults, licences; custom code where a config refers to it. Never weights,
never the model card (README.md is about the source), never hidden files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from gqakit.errors import CheckpointError

from .atomic import PARTIAL, atomic_file, output_errors
from .jsonio import POINTER_BYTES, check_no_pointer, parse_object, read_bytes

TEMPLATES_FOLDER = "additional_chat_templates"
# Matched against the lower-case name.
_PATTERNS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(
        "vocab.*",
        "merges.txt",
        "*.model",
        "tokenizer.model.*",
        "*.tiktoken",
        "tekken.json",
        "normalizer.json",
    ),
    *("chat_template.*", "generation_config.json", "*processor_config.json", "feature_extractor_config.json"),
    *("license*", "licence*", "notice*", "use_policy*"),
)
_NEVER = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".partial",
    PARTIAL,
)
_MAY_REFER_TO_CODE = ("config.json", "tokenizer_config.json", "*processor_config.json")


def is_side_file(name: str) -> bool:
    """Whether a file of this name (custom code apart) belongs beside the weights of any model."""
    lower = name.lower()
    if lower.startswith(".") or lower.endswith(_NEVER):
        return False
    return any(fnmatchcase(lower, pattern) for pattern in _PATTERNS)


def side_files(source_dir: Path) -> tuple[str, ...]:
    """The relative names that `copy_side_files` copies, sorted.

    Raises CheckpointError if a config among them is not a JSON object.
    """
    names = sorted(entry.name for entry in source_dir.iterdir() if entry.is_file())
    chosen = {name for name in names if is_side_file(name)}
    if _refers_to_code(source_dir, names):
        chosen |= {name for name in names if name.endswith(".py") and not name.startswith(".")}
    folder = source_dir / TEMPLATES_FOLDER
    if folder.is_dir():
        chosen |= {f"{TEMPLATES_FOLDER}/{entry.name}" for entry in folder.glob("*.jinja") if entry.is_file()}
    return tuple(sorted(chosen))


def check_side_files(source_dir: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError if a tokenizer's or another side file is a Git LFS pointer."""
    for path in (source_dir / name for name in names if is_side_file(name)):
        with suppress(OSError):  # who needs the file says what is wrong with it
            if path.is_file() and path.stat().st_size < POINTER_BYTES:
                check_no_pointer(path.read_bytes(), path)


def copy_side_files(source_dir: Path, out_dir: Path, names: Iterable[str]) -> None:
    """Copy side files of a checkpoint, by their relative names, into an existing directory.

    Raises CheckpointError if one cannot be read, OutputError if one cannot be written.
    """
    for name in names:
        target = out_dir / name
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            original = (source_dir / name).open("rb")
        except OSError as error:
            raise CheckpointError(f"{source_dir / name}: cannot be read ({error.strerror}).") from error
        with original, atomic_file(target) as copy, output_errors(target):
            shutil.copyfileobj(original, copy)


def _refers_to_code(source_dir: Path, names: list[str]) -> bool:
    configs = [n for n in names if any(fnmatchcase(n, pattern) for pattern in _MAY_REFER_TO_CODE)]
    return any(
        "auto_map" in parse_object(read_bytes(source_dir / name), str(source_dir / name)) for name in configs
    )
