"""Encoders with a decoder: Whisper, T5."""

from __future__ import annotations

from gqakit.models.families.base import Family, Names, Stack


def _whisper(name: str, side: str, attention: str, *, cached: bool, cross: bool = False) -> Stack:
    return Stack(
        name=name,
        home=f"{side}.layers.{{layer}}.{attention}",
        names=Names(output="out_proj"),
        block=f"{side}.layers.{{layer}}",
        num_layers=f"{side}_layers",
        num_heads=f"{side}_attention_heads",
        cached=cached,
        cross=cross,
    )


WHISPER = Family(
    "whisper",
    {"AutoModel": "WhisperModel", "AutoModelForSpeechSeq2Seq": "WhisperForConditionalGeneration"},
    stacks=(
        _whisper("encoder", "encoder", "self_attn", cached=False),
        _whisper("decoder", "decoder", "self_attn", cached=True),
        _whisper("cross", "decoder", "encoder_attn", cached=True, cross=True),
    ),
    task="speech",
    hidden_size="d_model",
    num_kv_heads=None,
    positions="none",
    encoder_classes={"WhisperForAudioClassification": "speech"},
)


def _t5(name: str, side: str, index: int, attention: str, *, cached: bool, cross: bool = False) -> Stack:
    return Stack(
        name=name,
        home=f"{side}.block.{{layer}}.layer.{index}.{attention}",
        names=Names("q", "k", "v", "o"),
        block=f"{side}.block.{{layer}}",
        num_layers="num_layers" if side == "encoder" else "num_decoder_layers|num_layers",
        num_heads="num_heads",
        cached=cached,
        cross=cross,
    )


T5 = Family(
    "t5",
    {"AutoModel": "T5Model", "AutoModelForSeq2SeqLM": "T5ForConditionalGeneration"},
    stacks=(
        _t5("encoder", "encoder", 0, "SelfAttention", cached=False),
        _t5("decoder", "decoder", 0, "SelfAttention", cached=True),
        _t5("cross", "decoder", 1, "EncDecAttention", cached=True, cross=True),
    ),
    prefixes=("", "transformer."),
    task="translation",
    hidden_size="d_model",
    head_dim="d_kv",
    num_kv_heads=None,
    positions="bias",
    encoder_classes={"T5EncoderModel": "embedding"},
    beside=("relative_attention_bias.weight",),
)
