"""Recordings as batches for a speech model: with a decoder, run on what the model itself hears."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint
from gqakit.data.pixels import PROCESSOR_FILE
from gqakit.data.samples import RATE, Speech
from gqakit.errors import DataError
from gqakit.models.architectures import family_of
from gqakit.models.defaults import with_defaults
from gqakit.models.families.base import lookup
from gqakit.models.load import load

SPOKEN_TOKENS = 96


def speech_batches(source: Checkpoint, speech: Speech) -> list[dict[str, Any]]:
    """Each recording with what the model itself hears in it, most likely token by token: the decoder is run on that.

    Raises:
        DataError: there are no recordings.
    """
    if not speech.clips:
        raise DataError(f"recordings {speech.name}: none left")
    name = input_name(source)
    heard = _waves(source, speech) if name == "input_values" else speech_features(source, speech).split(1)
    if is_encoder(source):
        return [{name: row} for row in heard]
    model: Any = load(source.path, dtype=torch.float32)
    begin = opening(source)
    return [
        {
            name: row,
            "decoder_input_ids": transcribe(model, row, begin, SPOKEN_TOKENS),
            "use_cache": False,
        }
        for row in heard
    ]


def input_name(source: Checkpoint) -> str:
    """What a speech model calls its input: `input_features`, a spectrogram, or `input_values`, the samples."""
    import transformers

    family = family_of(source.config)
    assert family is not None
    return getattr(transformers, family.classes["AutoModel"]).main_input_name


def is_encoder(source: Checkpoint) -> bool:
    """Whether a speech model has no decoder, as one that classifies recordings."""
    family = family_of(source.config)
    return family is not None and not any(stack.cached for stack in family.stacks)


def opening(source: Checkpoint) -> list[int]:
    """The tokens that a speech model's decoder begins with: the start, then language and task where they are forced."""
    begin = [int(with_defaults(source.config).get("decoder_start_token_id") or 0)]
    path = source.path / "generation_config.json"
    forced = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return begin + [token for _, token in forced.get("forced_decoder_ids") or [] if token is not None]


def transcribe(model: Any, heard: Tensor, begin: Sequence[int], most: int) -> Tensor:
    """The most likely tokens for one recording, `[1, tokens]`, those it was begun with first.

    Args:
        model: with a decoder. heard: its input, `[1, mels, frames]` or `[1, samples]`.
        begin: what the decoder begins with. most: tokens to add.
    """
    end, ids = model.config.eos_token_id, torch.tensor([list(begin)])
    longest = lookup(model.config.to_dict(), "max_target_positions|max_position_embeddings")
    most = most if longest is None else min(most, longest - ids.shape[1])
    with torch.inference_mode():
        encoded = model.get_encoder()(heard)
        cache, new = None, ids
        for _ in range(most):
            made = model(
                encoder_outputs=encoded, decoder_input_ids=new, past_key_values=cache, use_cache=True
            )
            cache = made.past_key_values
            logits = _next_scores(model, made)
            if end is not None and model.config.model_type == "whisper":
                logits[:, end + 1 :] = -torch.inf  # no timestamps
            new = logits.argmax(-1, keepdim=True)
            if end is not None and int(new) == end:
                break
            ids = torch.cat([ids, new], dim=1)
    return ids


def _next_scores(model: Any, made: Any) -> Tensor:
    """Scores of the next token, `[1, tokens]`. A model without its head has it all the same: these tie it to embeddings."""
    if "logits" in made:
        return made.logits[:, -1]
    return made.last_hidden_state[:, -1] @ model.get_decoder().get_input_embeddings().weight.T


def speech_features(source: Checkpoint, speech: Speech) -> Tensor:
    """Log-mel spectrograms of recordings, `[n, mels, frames]`."""
    from transformers import WhisperFeatureExtractor

    config = with_defaults(source.config)
    if (source.path / PROCESSOR_FILE).is_file():
        extractor = WhisperFeatureExtractor.from_pretrained(str(source.path), local_files_only=True)
    else:
        extractor = WhisperFeatureExtractor(feature_size=config["num_mel_bins"])
    frames = 2 * int(config["max_source_positions"])
    made = extractor(list(speech.clips), sampling_rate=RATE, return_tensors="pt")["input_features"]
    return made[..., :frames]


def _waves(source: Checkpoint, speech: Speech) -> list[Tensor]:
    """Each recording's samples, `[1, samples]`, normalised by the checkpoint's extractor where it has one."""
    if not (source.path / PROCESSOR_FILE).is_file():
        return [torch.from_numpy(np.ascontiguousarray(clip))[None] for clip in speech.clips]
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(str(source.path), local_files_only=True)
    made = (extractor(clip, sampling_rate=RATE, return_tensors="pt") for clip in speech.clips)
    return [each["input_values"] for each in made]


def noise(source: Checkpoint, rng: torch.Generator) -> dict[str, Any]:
    """A batch of seeded noise."""
    config, name = with_defaults(source.config), input_name(source)
    shape = (
        (RATE,)
        if name == "input_values"
        else (config["num_mel_bins"], 2 * int(config["max_source_positions"]))
    )
    heard = {name: torch.randn(1, *shape, generator=rng)}
    if is_encoder(source):
        return heard
    ids = torch.randint(int(config["vocab_size"]), (1, 16), generator=rng)
    return {**heard, "decoder_input_ids": ids, "use_cache": False}
