"""The files beside the weights that a converted model shares with its source, copied byte for byte.

All that is not weights comes along, folders too (`1_Pooling/config.json`): tokenizer, processors, generation
defaults, licences. Left are weights in any format, folders that hold some (another model: adapters, exports), what gqakit
writes itself, the model card (README.md is about the source), what a training leaves behind, hidden files, caches, and
custom code unless a config refers to it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from gqakit.errors import CheckpointError

from .atomic import PARTIAL, atomic_file, output_errors
from .jsonio import POINTER_BYTES, check_no_pointer, parse_object, read_bytes

_log = logging.getLogger(__name__)
TEMPLATES_FOLDER = "additional_chat_templates"
# What only a checkpoint has at its top; matched against the lower-case name.
_KNOWN = (
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
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)
_WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.ot"),
    *("*.onnx", "*.onnx_data", "*.onnx.data", "*.tflite", "*.mlmodel", "*.npz", "*.npy", "*.pkl", "*.pickle"),
    *("*.index.json", "*.index.*.json", "openvino_*.xml", "*.nemo", "*.llamafile", "*.mlpackage", "*.engine"),
)
_TRAINING = ("trainer_*", "*_results.json", "*.distcp", "events.out.tfevents*")
_NEVER = (*_WEIGHTS, *_TRAINING, "gqakit-*", "*.partial", f"*{PARTIAL}", "*.pyc")
# params.json is the config of `consolidated.safetensors`, in Mistral's own format.
_NEVER_AT_TOP = ("config.json", "readme.md", "params.json")
_NO_FOLDERS = (
    *(".*", "__pycache__", "checkpoint-*", "global_step*", "runs", "logs", "wandb"),
    *("onnx", "openvino", "coreml", "original"),
)
_LARGE = 100 * 2**20  # the largest tokenizers take 40 MB; what is larger and unknown is data, not a side file
_MAY_REFER_TO_CODE = ("config.json", "tokenizer_config.json", "*processor_config.json")


def is_side_file(name: str) -> bool:
    """Whether only checkpoints have a file of this name at their top (custom code apart)."""
    lower = name.lower()
    if lower.startswith(".") or matches(lower, _NEVER):
        return False
    return matches(lower, _KNOWN)


def side_files(source_dir: Path) -> tuple[str, ...]:
    """The relative names that `copy_side_files` copies, sorted; what is left out although it is no weight is logged.

    Raises CheckpointError if a config among them is not a JSON object.
    """
    has_code, home = _refers_to_code(source_dir), source_dir.resolve()
    return tuple(
        sorted(n for n in _candidates(source_dir, has_code) if _may_be_copied(source_dir / n, n, home))
    )


def _candidates(source_dir: Path, has_code: bool) -> Iterator[str]:
    """The files below a directory but for those that never come along; links to folders are not followed."""
    modules = _module_folders(source_dir)
    for folder, folders, names in os.walk(source_dir):
        inside = Path(folder).relative_to(source_dir)
        at_top = inside == Path()
        if not at_top and inside.as_posix() not in modules and _holds_weights(names):
            folders[:] = []  # another model: an adapter, an export, a state of the training
            continue
        folders[:] = [name for name in folders if not matches(name.lower(), _NO_FOLDERS)]
        never = [".*", *(_NEVER if inside.as_posix() not in modules else ())]
        never += [*(_NEVER_AT_TOP if at_top else ()), *(() if at_top and has_code else ("*.py",))]
        yield from ((inside / name).as_posix() for name in names if not matches(name.lower(), never))


def _holds_weights(names: Iterable[str]) -> bool:
    return any(matches(name.lower(), (*_WEIGHTS, "*.distcp")) for name in names)


def _may_be_copied(path: Path, name: str, home: Path) -> bool:
    """Whether it is a file of the checkpoint's own, or of a hub cache, and no larger than side files are."""
    if not path.is_file() or is_side_file(name):
        return path.is_file()
    real = path.resolve()
    # In a hub cache, snapshots/REVISION holds links to ../../blobs.
    if not real.is_relative_to(home) and real.parent != home.parent.parent / "blobs":
        _log.warning("%s: a link to %s, outside of the checkpoint; it is not copied", path, real)
        return False
    if path.stat().st_size > _LARGE:
        _log.warning("%s: larger than %d MiB and no known side file; it is not copied", path, _LARGE // 2**20)
        return False
    return True


def _module_folders(source_dir: Path) -> set[str]:
    """The folders of a sentence-transformers pipeline, whose small weights (`2_Dense`) belong to it."""
    try:
        modules = json.loads((source_dir / "modules.json").read_bytes())
        return {module["path"] for module in modules if module["path"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


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


def _refers_to_code(source_dir: Path) -> bool:
    names = sorted(entry.name for entry in source_dir.iterdir() if entry.is_file())
    configs = [name for name in names if matches(name, _MAY_REFER_TO_CODE)]
    return any(
        "auto_map" in parse_object(read_bytes(source_dir / name), str(source_dir / name)) for name in configs
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is like one of the patterns of a shell."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
