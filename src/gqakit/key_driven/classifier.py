"""An image classifier out of any checkpoint of its family, at another resolution and with other classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gqakit.checkpoint import Checkpoint, write_bytes
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.jsonio import pretty
from gqakit.data.pixels import PROCESSOR_FILE
from gqakit.errors import CheckpointError
from gqakit.models.defaults import with_defaults
from gqakit.models.registration import register

CLASSIFIER = "AutoModelForImageClassification"


def save_classifier(
    source: Checkpoint, directory: Path, classes: Sequence[str], image_size: int, seed: int
) -> None:
    """Write a checkpoint as a classifier of these classes at this resolution, in float32.

    Position embeddings are interpolated as the family's own code does for images of that size, once. A
    classifier of the same classes is kept; else a new one is drawn.

    Args:
        source: with or without a classifier; grouped or not.
        image_size: pixels, a multiple of the patches'; 0 for the checkpoint's own.
        seed: of the new classifier.

    Raises:
        CheckpointError: tensors are missing. OutputError: it cannot be written.
    """
    size = image_size or int(with_defaults(source.config)["image_size"])
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = load_classifier(source, classes)
    if size != model.config.image_size:
        resize(model, size)
    with output_errors(directory):
        model.save_pretrained(str(directory))
    processor = source.path / PROCESSOR_FILE
    if processor.is_file():
        settings = resized_processor(json.loads(processor.read_text(encoding="utf-8")), size)
        write_bytes(directory / PROCESSOR_FILE, pretty(settings))


def load_classifier(source: Checkpoint, classes: Sequence[str]) -> Any:
    """The model with a classifier of these classes, a new one by torch's global chance unless it has it already."""
    import transformers

    register(str(source.config.get("model_type")))
    names = dict(enumerate(classes))
    loaded: Any = getattr(transformers, CLASSIFIER).from_pretrained(
        str(source.path),
        dtype=torch.float32,
        local_files_only=True,
        id2label=names,
        label2id={name: label for label, name in names.items()},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model, info = loaded
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(("classifier.", "pooler.")))
    if missing:
        raise CheckpointError(
            f"{source.path}: {len(missing)} tensors of the model are missing, first {missing[0]!r}. "
            "The checkpoint is incomplete; copy or convert it again."
        )
    before = source.config.get("id2label") or {}
    if [before.get(str(label)) for label in names] != list(classes) or info["missing_keys"]:
        nn.init.zeros_(model.classifier.bias)
        nn.init.trunc_normal_(model.classifier.weight, std=0.02)
    return model.eval()


def resize(model: Any, size: int) -> None:
    """Give a model the position embeddings and the config of another resolution; it must be saved and loaded after that."""
    embeddings, config = model.base_model.embeddings, model.config
    positions = (size // config.patch_size) ** 2 + 1
    with torch.no_grad():
        blank = torch.zeros(1, positions, config.hidden_size)
        moved = embeddings.interpolate_pos_encoding(blank, size, size)
        embeddings.position_embeddings = nn.Parameter(moved.clone().contiguous())
    config.image_size = size


def resized_processor(settings: dict[str, Any], size: int) -> dict[str, Any]:
    """An image processor's settings for another resolution."""
    square = {"height": size, "width": size}
    edge = "shortest_edge" in (settings.get("size") or {})
    new = {**settings, "size": {"shortest_edge": size} if edge else square, "do_resize": True}
    if "crop_size" in new:
        new["crop_size"] = square
    return new


def train_all_but(model: nn.Module, frozen: Sequence[str]) -> None:
    """Let every parameter train but those whose path has one of these parts."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not set(frozen) & set(name.split(".")))
