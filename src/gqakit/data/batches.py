"""Text, images and speech as batches for a model, by what its family takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gqakit.data.pixels import PixelTransform
from gqakit.data.samples import Images, Pairs, Speech, text_batches, translation_batches
from gqakit.data.speech import noise, speech_batches
from gqakit.data.text import Text, read_text, token_windows
from gqakit.errors import DataError, UsageError
from gqakit.models.architectures import named, text_part
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec

Content = Text | Images | Speech | Pairs

IMAGES_AT_ONCE = 8
# Families whose position embeddings follow another image size only when asked to; DINOv2's always do.
ASK_TO_INTERPOLATE = ("vit", "clip_vision_model", "siglip_vision_model", "clip", "siglip")
_TAKES = {"text": Text, "images": Images, "audio": Speech}


def check_content(spec: ModelSpec, content: Content) -> None:
    """Raise `UsageError` unless a model of this kind takes it."""
    kind = _TAKES[spec.family.data]
    if spec.family.task == "pair" and isinstance(content, Pairs):
        return
    if not isinstance(content, kind):
        raise UsageError(
            f"a {spec.family.model_type} model runs on {kind.__name__.lower()}, not on {type(content).__name__.lower()}; "
            f"give `{spec.family.data}`"
        )


def batches_of(
    source: Source, content: Content, *, window: int, tokens: int, skip: int = 0
) -> list[dict[str, Any]]:
    """Batches without padding for calibration, measurement and checks.

    Args:
        source: the model.
        content: what it is to be run on.
        window, tokens: for text, tokens per window and in all. Of images and recordings all are taken.
        skip: number of windows, images or recordings to leave out at the start.

    Raises:
        UsageError: the model takes something else. DataError: too little. CheckpointError: no tokenizer.
    """
    spec, checkpoint = source.spec, source.checkpoint
    check_content(spec, content)
    if spec.family.task == "pair":
        assert isinstance(content, Images | Pairs)
        return _pairs(source, content, window=window, skip=skip)
    if isinstance(content, Images):
        return _image_batches(source, content, skip)
    if isinstance(content, Speech):
        return speech_batches(checkpoint, Speech(content.name, content.clips[skip:]))
    assert isinstance(content, Text)
    window = min(window, _longest(checkpoint.config))
    tokenizer = load_tokenizer(checkpoint)
    windows = token_windows(tokenizer, content, window=window, tokens=tokens, skip=skip)
    if spec.family.task == "translation":
        config = source.full_config
        start, end = int(config.get("decoder_start_token_id") or 0), config.get("eos_token_id")
        classifies = any(name.endswith("ForSequenceClassification") for name in named(config))
        return translation_batches(windows, start, end if classifies else None)
    batches = text_batches(windows, cached=spec.family.task == "text")
    if any(name.endswith("ForMultipleChoice") for name in named(checkpoint.config)):
        return [{**batch, "input_ids": batch["input_ids"][:, None]} for batch in batches]  # [B, choices, T]
    return batches


def _image_batches(source: Source, content: Images, skip: int) -> list[dict[str, Any]]:
    """Some images at a time, as the model's processor prepares them."""
    if len(content.pixels) <= skip:
        raise DataError(f"images {content.name}: {len(content.pixels)}, none left after the first {skip}")
    transform = PixelTransform(source.checkpoint, content.size)
    pixels = transform(content.pixels[skip:])
    asks = {}
    if transform.interpolates and source.spec.family.model_type in ASK_TO_INTERPOLATE:
        asks["interpolate_pos_encoding"] = True
    return [{"pixel_values": part, **asks} for part in pixels.split(IMAGES_AT_ONCE)]


def _pairs(source: Source, content: Images | Pairs, *, window: int, skip: int) -> list[dict[str, Any]]:
    """Some images at a time with as many pieces of a text; of gqakit's own where none is given."""
    images, text = (
        (content.images, content.text)
        if isinstance(content, Pairs)
        else (content, read_text(["calibration"]))
    )
    batches, tokenizer = _image_batches(source, images, skip), load_tokenizer(source.checkpoint)
    window = min(window, _longest(source.spec.sites[0].stack.config(source.checkpoint.config)))
    pieces = token_windows(tokenizer, text, window=window, tokens=window * len(images.pixels))
    if tokenizer.eos_token_id is not None:  # where such models look for what the whole piece says
        pieces[:, -1] = tokenizer.eos_token_id
    for number, batch in enumerate(batches):
        of_batch = torch.arange(len(batch["pixel_values"])) + number * IMAGES_AT_ONCE
        batch["input_ids"] = pieces[of_batch % len(pieces)]
    return batches


def _longest(config: Mapping[str, Any]) -> int:
    """The longest text that learned positions allow."""
    kind, part = config.get("model_type", "").removeprefix("gqakit_"), text_part(config)
    longest = part.get("max_position_embeddings") or part.get("n_positions")
    if kind in ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "mpnet") and longest:
        longest -= 2  # their positions begin after the padding index
    return longest or 1 << 30


def noise_batch(source: Source) -> dict[str, Any]:
    """Seeded noise that an image or speech model takes, to compare two models on where nothing better is given."""
    rng = torch.Generator().manual_seed(0)
    if source.spec.family.task in ("image", "pair"):
        whole = source.full_config
        config = {**whole, **(whole.get("vision_config") or {})}
        size = config["image_size"]
        size = size if isinstance(size, int) else size[0]
        pixels = torch.randn(1, config["num_channels"], size, size, generator=rng)
        if source.spec.family.task == "image":
            return {"pixel_values": pixels}
        vocabulary = whole["text_config"]["vocab_size"]
        return {"pixel_values": pixels, "input_ids": torch.randint(vocabulary, (2, 8), generator=rng)}
    return noise(source.checkpoint, rng)
