"""Say what a directory is when it is not a checkpoint that can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gqakit.errors import CheckpointError

from .index import INDEX_NAME, SINGLE_NAME, listed
from .manifest import MANIFEST_NAME
from .sidefiles import check_side_files, matches

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_BESIDE = {
    "AutoTokenizer": ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model"),
    "AutoProcessor": ("*processor_config.json",),
}
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")


def check_directory(path: Path) -> None:
    """Raises CheckpointError if `path` is anything but a directory."""
    if path.is_dir():
        return
    if path.suffix == ".gguf":
        raise _gguf_error(path.parent, [path.name])
    raise CheckpointError(
        f"{path}: is not a directory. Give the directory that holds config.json and the weights."
    )


def weight_index(directory: Path) -> Path | None:
    """The index of a sharded checkpoint, or None if the weights are one `model.safetensors`.

    The single file wins where both exist, as it does in transformers.
    Raises CheckpointError if the directory holds neither, or is no checkpoint, saying what it holds instead.
    """
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot be listed ({error.strerror}). Check its rights."
        ) from error
    if MANIFEST_NAME in names:
        raise CheckpointError(
            f"{directory}: is an unfinished gqakit output ({MANIFEST_NAME} is still there). "
            "Run the same conversion again; it continues where it stopped."
        )
    check_side_files(directory, names)
    if "adapter_config.json" in names:
        raise _adapter_error(directory, names)
    if SINGLE_NAME not in names and INDEX_NAME not in names:
        raise _without_weights(directory, names)
    if "config.json" not in names:
        raise CheckpointError(f"{directory}: has weights but no config.json. Fetch the config of this model.")
    return None if SINGLE_NAME in names else directory / INDEX_NAME


def check_weights_named(directory: Path, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a config names other weights than those that are read; transformers would load these."""
    named = config.get("transformers_weights")
    if named not in (None, SINGLE_NAME, INDEX_NAME):
        raise CheckpointError(
            f"{directory}: config.json names {named!r} as its weights (transformers_weights), expected {SINGLE_NAME} or "
            f"{INDEX_NAME}. Save it under the usual names: {_saving_again(directory)}"
        )


def _without_weights(directory: Path, names: list[str]) -> CheckpointError:
    pickled = [n for n in names if matches(n, _PICKLED) and not matches(n, _NO_WEIGHTS)]
    gguf = [n for n in names if n.endswith(".gguf")]
    other = [n for n in names if n.endswith(".safetensors")]
    if variant := _variant(names):
        return CheckpointError(
            f"{directory}: holds the variant {variant!r} of its weights alone, expected {SINGLE_NAME} or {INDEX_NAME}. "
            f"Save it under the usual names: {_saving_again(directory, variant)}"
        )
    if other:
        return CheckpointError(
            f"{directory}: holds {listed(other)} but neither {SINGLE_NAME} nor {INDEX_NAME}. "
            "Fetch the missing index, or rename a single file."
        )
    if pickled:
        return CheckpointError(
            f"{directory}: has only pickled weights ({listed(pickled)}), which can run code when read and "
            "are refused. "
            f"Convert them to safetensors first: {_saving_again(directory)}"
        )
    if gguf:
        return _gguf_error(directory, gguf)
    if "config.json" not in names:
        inside = [
            str(path.parent) for depth in ("*", "*/*") for path in directory.glob(f"{depth}/config.json")
        ]
        hint = f" The model may be {listed(sorted(inside))}." if inside else ""
        return CheckpointError(
            f"{directory}: has no config.json and no weights: not a model directory. It holds "
            f"{listed(names) or 'nothing'}; expected config.json and {SINGLE_NAME} or {INDEX_NAME}.{hint}"
        )
    return CheckpointError(
        f"{directory}: has a config.json but no weights, expected {SINGLE_NAME} or {INDEX_NAME} with its "
        "shards. Fetch the weights in safetensors form."
    )


def _adapter_error(directory: Path, names: list[str]) -> CheckpointError:
    """Transformers adds an adapter that lies beside the weights to the model; without weights it is no model."""
    seen = "has a PEFT adapter beside its weights, which transformers adds to them"
    whole = SINGLE_NAME in names or INDEX_NAME in names
    return CheckpointError(
        f"{directory}: {seen if whole else 'is a PEFT adapter, not a whole model'}. Merge it into its base model "
        "(merge_and_unload and save_pretrained), then convert that."
    )


def _variant(names: list[str]) -> str | None:
    """The variant (`fp16`) that the files of safetensors are all of, None where there is none."""
    spelled = (r"model\.safetensors\.index\.(.+)\.json", r"model\.(.+?)(-\d+-of-\d+)?\.safetensors")
    found = (re.fullmatch(pattern, name) for pattern in spelled for name in names)
    return next((match[1] for match in found if match), None)


def _gguf_error(directory: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{directory}: has its weights as GGUF ({listed(names)}), expected safetensors. Convert it first: "
        'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"[X.from_pretrained({str(directory)!r}, gguf_file={names[0]!r}).save_pretrained('OUT') for X in (M, T)]\""
    )


def _saving_again(directory: Path, variant: str | None = None) -> str:
    """The command that loads a checkpoint as the class that its config names and saves it, with what stands beside it.

    Only a tokenizer or processor whose files are there is named: loading what is missing would fail.
    """
    try:
        config = json.loads((directory / "config.json").read_bytes())
        named = [str(name) for name in config.get("architectures") or [] if str(name).isidentifier()]
    except (OSError, ValueError, AttributeError):
        named = []
    names = [path.name for path in directory.iterdir()]
    beside = [each for each, patterns in _BESIDE.items() if any(matches(name, patterns) for name in names)]
    classes = ", ".join([*named[:1], *beside] if named else ["AutoModel", *beside])
    which = f"{str(directory)!r}" + (f", variant={variant!r}" if variant else "")
    code = f"from transformers import {classes}; [X.from_pretrained({which}).save_pretrained('OUT')"
    return f'python -c "{code} for X in [{classes}]]"'
