"""Text, images and speech as batches for a model, by what its family takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint
from gqakit.data.pixels import PixelTransform
from gqakit.data.samples import Images, Speech, text_batches, translation_batches
from gqakit.data.text import Text, token_windows
from gqakit.errors import DataError, UsageError
from gqakit.models.architectures import family_of, named, text_part
from gqakit.models.load import load
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec

Content = Text | Images | Speech

IMAGES_AT_ONCE = 8
# Families whose position embeddings follow another image size only when asked to; DINOv2's always do.
ASK_TO_INTERPOLATE = ("vit", "clip_vision_model")
SPOKEN_TOKENS = 96
_TAKES = {"text": Text, "embedding": Text, "translation": Text, "image": Images, "speech": Speech}
_OPTION = {Text: "text", Images: "images", Speech: "audio"}


def check_content(spec: ModelSpec, content: Content) -> None:
    """Raise `UsageError` unless a model of this kind takes it."""
    kind = _TAKES[spec.family.task]
    if not isinstance(content, kind):
        raise UsageError(
            f"a {spec.family.model_type} model runs on {kind.__name__.lower()}, not on {type(content).__name__.lower()}; "
            f"give `{_OPTION[kind]}`"
        )


def kind_of_data(spec: ModelSpec) -> str:
    """The option that names what a model runs on: text, images or audio."""
    return _OPTION[_TAKES[spec.family.task]]


def unit_of(spec: ModelSpec) -> str:
    """What progress counts for a model."""
    return "images" if spec.family.task == "image" else "tokens"


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
    if isinstance(content, Images):
        if len(content.pixels) <= skip:
            raise DataError(f"images {content.name}: {len(content.pixels)}, none left after the first {skip}")
        transform = PixelTransform(checkpoint, content.size)
        pixels = transform(content.pixels[skip:])
        asks = {}
        if transform.interpolates and spec.family.model_type in ASK_TO_INTERPOLATE:
            asks["interpolate_pos_encoding"] = True
        return [{"pixel_values": part, **asks} for part in pixels.split(IMAGES_AT_ONCE)]
    if isinstance(content, Speech):
        return speech_batches(checkpoint, Speech(content.name, content.clips[skip:]))
    window = min(window, _longest(checkpoint))
    tokenizer = load_tokenizer(checkpoint)
    windows = token_windows(tokenizer, content, window=window, tokens=tokens, skip=skip)
    if spec.family.task == "translation":
        return translation_batches(windows, int(checkpoint.config.get("decoder_start_token_id") or 0))
    batches = text_batches(windows, cached=spec.family.task == "text")
    if any(name.endswith("ForMultipleChoice") for name in named(checkpoint.config)):
        return [{**batch, "input_ids": batch["input_ids"][:, None]} for batch in batches]  # [B, choices, T]
    return batches


def _longest(source: Checkpoint) -> int:
    """The longest text that learned positions allow."""
    kind, part = source.config.get("model_type", "").removeprefix("gqakit_"), text_part(source.config)
    longest = part.get("max_position_embeddings") or part.get("n_positions")
    if kind in ("roberta", "mpnet") and longest:
        longest -= 2  # their positions begin after the padding index
    return longest or 1 << 30


def speech_batches(source: Checkpoint, speech: Speech) -> list[dict[str, Any]]:
    """Each recording with what the model itself hears in it, most likely token by token: the decoder is run on that."""
    if not speech.clips:
        raise DataError(f"recordings {speech.name}: none left")
    if _is_encoder(source):
        return [{"input_features": row[None]} for row in speech_features(source, speech)]
    model: Any = load(source.path, dtype=torch.float32)
    begin = opening(source)
    return [
        {
            "input_features": row[None],
            "decoder_input_ids": transcribe(model, row[None], begin, SPOKEN_TOKENS),
            "use_cache": False,
        }
        for row in speech_features(source, speech)
    ]


def _is_encoder(source: Checkpoint) -> bool:
    """Whether a speech model has no decoder, as one that classifies recordings."""
    family = family_of(source.config)
    return family is not None and not any(stack.cached for stack in family.stacks)


def opening(source: Checkpoint) -> list[int]:
    """The tokens that a speech model's decoder begins with: the start, then language and task where they are forced."""
    begin = [int(source.config.get("decoder_start_token_id") or 0)]
    path = source.path / "generation_config.json"
    forced = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return begin + [token for _, token in forced.get("forced_decoder_ids") or [] if token is not None]


def transcribe(model: Any, features: Tensor, begin: Sequence[int], most: int) -> Tensor:
    """The most likely tokens for one recording `[1, mels, frames]`, `[1, tokens]`, those it was begun with first."""
    end, ids = model.config.eos_token_id, torch.tensor([list(begin)])
    with torch.inference_mode():
        encoded = model.get_encoder()(features)
        cache, new = None, ids
        for _ in range(most):
            made = model(
                encoder_outputs=encoded, decoder_input_ids=new, past_key_values=cache, use_cache=True
            )
            cache = made.past_key_values
            logits = made.logits[:, -1]
            if end is not None:
                logits[:, end + 1 :] = -torch.inf  # no timestamps
            new = logits.argmax(-1, keepdim=True)
            if end is not None and int(new) == end:
                break
            ids = torch.cat([ids, new], dim=1)
    return ids


def speech_features(source: Checkpoint, speech: Speech) -> Tensor:
    """Log-mel spectrograms of recordings, `[n, mels, frames]`."""
    from transformers import WhisperFeatureExtractor

    if (source.path / "preprocessor_config.json").is_file():
        extractor = WhisperFeatureExtractor.from_pretrained(str(source.path), local_files_only=True)
    else:
        extractor = WhisperFeatureExtractor(feature_size=source.config.get("num_mel_bins", 80))
    frames = 2 * int(source.config.get("max_source_positions", 1500))
    made = extractor(list(speech.clips), sampling_rate=16_000, return_tensors="pt")["input_features"]
    return made[..., :frames]


def noise_batch(source: Source) -> dict[str, Any]:
    """Seeded noise that an image or speech model takes, to compare two models on where nothing better is given."""
    rng = torch.Generator().manual_seed(0)
    config = source.checkpoint.config
    if source.spec.family.task == "image":
        size = config.get("image_size", 224)
        size = size if isinstance(size, int) else size[0]
        return {"pixel_values": torch.randn(1, config.get("num_channels", 3), size, size, generator=rng)}
    frames = 2 * int(config.get("max_source_positions", 1500))
    features = torch.randn(1, config.get("num_mel_bins", 80), frames, generator=rng)
    if _is_encoder(source.checkpoint):
        return {"input_features": features}
    ids = torch.randint(int(config["vocab_size"]), (1, 16), generator=rng)
    return {"input_features": features, "decoder_input_ids": ids, "use_cache": False}
