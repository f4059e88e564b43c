"""Encoders of speech as it was recorded: wav2vec 2.0, HuBERT."""

from __future__ import annotations

from gqakit.models.families.base import Family, Names, Stack, classes

_STACK = Stack(
    name="encoder",
    home="encoder.layers.{layer}.attention",
    names=Names(output="out_proj"),
    block="encoder.layers.{layer}",
    cached=False,
)


def _family(model_type: str, prefix: str) -> Family:
    return Family(
        model_type,
        {
            **classes(prefix, "ForCTC"),
            "AutoModelForAudioClassification": f"{prefix}ForSequenceClassification",
        },
        stacks=(_STACK,),
        prefixes=(f"{model_type}.", ""),
        task="speech",
        num_kv_heads=None,
        positions="none",
    )


WAV2VEC2 = _family("wav2vec2", "Wav2Vec2")
HUBERT = _family("hubert", "Hubert")
