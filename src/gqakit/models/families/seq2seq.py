"""Encoders with a decoder: Whisper, Moonshine, BART and its brothers, T5."""

from __future__ import annotations

from gqakit.models.families.base import Family, Names, Stack, classes


def _stacks(
    names: Names, layers: str = "{side}_layers", heads: str = "{side}_attention_heads"
) -> tuple[Stack, ...]:
    """Encoder, decoder and what is between them, with the config's keys for each `side`."""
    return tuple(
        Stack(
            name=name,
            home=f"{side}.layers.{{layer}}.{attention}",
            names=names,
            block=f"{side}.layers.{{layer}}",
            num_layers=layers.format(side=side),
            num_heads=heads.format(side=side),
            cached=side == "decoder",
            cross=name == "cross",
        )
        for name, side, attention in (
            ("encoder", "encoder", "self_attn"),
            ("decoder", "decoder", "self_attn"),
            ("cross", "decoder", "encoder_attn"),
        )
    )


_BART_STACKS = _stacks(Names(output="out_proj"))
WHISPER = Family(
    "whisper",
    {"AutoModel": "WhisperModel", "AutoModelForSpeechSeq2Seq": "WhisperForConditionalGeneration"},
    stacks=_BART_STACKS,
    task="speech",
    hidden_size="d_model",
    num_kv_heads=None,
    positions="none",
    encoder_classes={"WhisperForAudioClassification": "speech"},
)
MOONSHINE = Family(
    "moonshine",
    {"AutoModel": "MoonshineModel", "AutoModelForSpeechSeq2Seq": "MoonshineForConditionalGeneration"},
    stacks=_stacks(Names(), "{side}_num_hidden_layers", "{side}_num_attention_heads"),
    task="speech",
    num_kv_heads=None,
    rotary_share=0.9,
    rotary_pairs="interleaved",
)


def _bart(model_type: str, prefix: str, generates: str = "ForConditionalGeneration", *heads: str) -> Family:
    return Family(
        model_type,
        {**classes(prefix, *heads), "AutoModelForSeq2SeqLM": f"{prefix}{generates}"},
        stacks=_BART_STACKS,
        task="translation",
        hidden_size="d_model",
        num_kv_heads=None,
        positions="none",
    )


BART = _bart("bart", "Bart")
MBART = _bart("mbart", "MBart")
MARIAN = _bart("marian", "Marian", "MTModel")
PEGASUS = _bart("pegasus", "Pegasus")
M2M_100 = _bart("m2m_100", "M2M100")
BLENDERBOT = _bart("blenderbot", "Blenderbot")
BLENDERBOT_SMALL = _bart("blenderbot-small", "BlenderbotSmall")


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
    encoder_classes={"T5EncoderModel": "embedding", "T5ForTokenClassification": "embedding"},
    beside=("relative_attention_bias.weight",),
)
