"""A tiny random checkpoint of every family, and what it makes of one input."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from multimodal_models import multimodal_configs
from safetensors.torch import load_file, save_file

import gqakit
from gqakit.core.attention import AttentionWeights
from gqakit.models.families import FAMILIES
from gqakit.models.layers import tensors_of_layer
from gqakit.models.source import Source

LAYERS, HEADS, HIDDEN, VOCAB = 2, 8, 64, 160  # more than the tokenizer of tiny_models knows
_TEXT = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BODY = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
}
_DECODER = {**_TEXT, **_BODY, "num_key_value_heads": HEADS, "max_position_embeddings": 128}
_ENCODER = {"vocab_size": VOCAB, **_BODY, "max_position_embeddings": 130}
_IMAGE = {**_BODY, "image_size": 24, "patch_size": 8}
_BART = {
    **{"vocab_size": VOCAB, "d_model": HIDDEN, "encoder_layers": LAYERS, "decoder_layers": LAYERS},
    **{"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "init_std": 0.2},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    "forced_eos_token_id": None,
}
_WAVE = {
    **{**_BODY, "vocab_size": 20, "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2)},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
}
_SMALLER = {
    "hidden_size": HIDDEN // 2,
    "num_attention_heads": HEADS // 2,
}  # than the other tower, head_dim the same
_NARROW = {"tie_word_embeddings": False, "initializer_range": 0.2}

_SLIDING = ["sliding_attention", "full_attention"]
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _alike(families: Iterable[str], config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {family: dict(config) for family in families}


CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, **_NARROW},
    "mistral": {**_DECODER, **_NARROW, "head_dim": 16, "sliding_window": None},
    "qwen2": {**_DECODER, **_NARROW},
    "qwen3": {**_DECODER, **_NARROW, "head_dim": 16},
    "phi3": {**_DECODER, **_NARROW, "original_max_position_embeddings": 128},
    "gemma2": {**_DECODER, **_NARROW, "head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_DECODER, **_NARROW, "head_dim": 16, "sliding_window": 8},
    "olmo2": {**_DECODER, **_NARROW},
    "stablelm": {**_DECODER, **_NARROW, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "gemma": {**_DECODER, **_NARROW, "head_dim": 16, "num_key_value_heads": HEADS // 2},
    "olmo": {**_DECODER, **_NARROW, "attention_bias": True},
    "mixtral": {**_DECODER, **_NARROW, "num_local_experts": 3, "sliding_window": 8},
    "qwen2_moe": {
        **{**_DECODER, **_NARROW, "num_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
    },
    "starcoder2": {**_DECODER, **_NARROW, "num_key_value_heads": HEADS // 2, "sliding_window": 8},
    "granite": {**_DECODER, **_NARROW, "attention_multiplier": 0.15, "residual_multiplier": 0.5},
    "smollm3": {**_DECODER, **_NARROW, "no_rope_layers": [1, 0]},
    "phi": {**_DECODER, **_NARROW},
    "cohere": {**_DECODER, **_NARROW, "logit_scale": 1.0},
    **_alike(
        ("ministral", "arcee", "seed_oss", "jais2", "hyperclovax", "nemotron", "helium", "ernie4_5"),
        {**_DECODER, **_NARROW, "head_dim": HIDDEN // HEADS},
    ),
    "ministral3": {**_DECODER, **_NARROW, "head_dim": 16, "sliding_window": None},
    **_alike(("glm", "glm4"), {**_DECODER, **_NARROW, "head_dim": 16, "attention_bias": True}),
    **_alike(
        ("cwm", "cohere2", "exaone4", "olmo3", "vaultgemma"),
        {**_DECODER, **_NARROW, "sliding_window": 8, "layer_types": _SLIDING},
    ),
    "apertus": {**_DECODER, **_NARROW},
    **_alike(("qwen3_moe", "olmoe", "flex_olmo", "phimoe"), {**_DECODER, **_NARROW, **_EXPERTS}),
    **_alike(
        ("dots1", "glm4_moe", "solar_open"),
        {**_DECODER, **_NARROW, **_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1},
    ),
    **_alike(
        ("minimax_m2", "granitemoe", "granitemoeshared"),
        {**_DECODER, **_NARROW, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
    "ernie4_5_moe": {**_DECODER, **_NARROW, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "gpt_oss": {
        **{**_DECODER, **_NARROW, "head_dim": 16, "num_key_value_heads": HEADS // 2},
        **{"sliding_window": 8, "num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 64},
    },
    "hunyuan_v1_dense": {**_DECODER, **_NARROW, "head_dim": 16},
    "gptj": {
        **{**_TEXT, **_NARROW, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128},
        "rotary_dim": 4,
    },
    "codegen": {
        **{**_TEXT, **_NARROW, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128},
        "rotary_dim": 4,
    },
    **multimodal_configs({**_DECODER, **_NARROW}, _IMAGE),
    "gpt2": {
        **{**_TEXT, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128},
        "initializer_range": 0.2,
    },
    "gpt_neox": {**_TEXT, **_BODY, **_NARROW, "max_position_embeddings": 128},
    "opt": {
        **{**_TEXT, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS},
        **{"ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "max_position_embeddings": 128, "init_std": 0.2},
    },
    "bloom": {**_TEXT, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "initializer_range": 0.2},
    "falcon": {
        **{**_TEXT, **_BODY, **_NARROW, "bias": True},
        **{"new_decoder_architecture": True, "num_kv_heads": HEADS // 2},
    },
    "gpt_bigcode": {
        **{**_TEXT, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128},
        "multi_query": False,
    },
    "mpt": {**_TEXT, "d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 128},
    "whisper": {
        **{**_TEXT, "d_model": HIDDEN, "encoder_layers": LAYERS, "decoder_layers": LAYERS},
        **{"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "init_std": 0.2},
        **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 3, "num_mel_bins": 8},
        **{"max_source_positions": 20, "max_target_positions": 64},
        **{"suppress_tokens": None, "begin_suppress_tokens": None},
    },
    "moonshine": {
        **{**_TEXT, "hidden_size": HIDDEN, "intermediate_size": 48, "max_position_embeddings": 64},
        **{f"{side}_num_hidden_layers": LAYERS for side in ("encoder", "decoder")},
        **{f"{side}_num_attention_heads": HEADS for side in ("encoder", "decoder")},
        **{"partial_rotary_factor": 0.5, "pad_head_dim_to_multiple_of": 3, "decoder_start_token_id": 1},
    },
    "wav2vec2": _WAVE,
    "hubert": {**_WAVE, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    "bart": _BART,
    "mbart": _BART,
    "marian": _BART,
    "pegasus": _BART,
    "m2m_100": _BART,
    "blenderbot": _BART,
    "blenderbot-small": _BART,
    "t5": {
        **{"vocab_size": VOCAB, "d_model": HIDDEN, "d_kv": 16, "d_ff": 48, "num_layers": LAYERS},
        **{"num_heads": HEADS, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    },
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "camembert": _ENCODER,
    "roberta-prelayernorm": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 32},
    "distilbert": {
        **{"vocab_size": VOCAB, "dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48},
        **{"max_position_embeddings": 130},
    },
    "mpnet": _ENCODER,
    "modernbert": {
        **{**_ENCODER, **_TEXT, "layer_types": ["full_attention", "sliding_attention"]},
        **{"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2, "attention_bias": True},
    },
    "vit": _IMAGE,
    "deit": _IMAGE,
    "dinov2": _IMAGE,
    "dinov2_with_registers": {**_IMAGE, "num_register_tokens": 2},
    "clip_vision_model": _IMAGE,
    "siglip_vision_model": _IMAGE,
    "clip_text_model": {**_ENCODER, "eos_token_id": 2},
    "siglip_text_model": _ENCODER,
    "clip": {
        "text_config": {**_ENCODER, **_SMALLER, "eos_token_id": 2},
        "vision_config": _IMAGE,
        "projection_dim": 16,
    },
    "siglip": {"text_config": {**_ENCODER, "projection_size": HIDDEN}, "vision_config": _IMAGE},
}
ALONE = [
    *((family, stack) for family in ("bart", "mbart", "marian") for stack in ("encoder", "decoder", "cross")),
    *(("whisper", "decoder"), ("whisper", "cross"), ("t5", "encoder"), ("t5", "cross")),
    *(("clip", "text"), ("clip", "vision"), ("siglip", "text")),
]
"""Families of several stacks with one of them converted, the others left as they are."""
_PLAIN_FALCON = {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": None}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in CONFIGS},
    "stablelm_normed": ("stablelm", {"qk_layernorm": True, "num_key_value_heads": HEADS // 2}),
    "phi_normed": ("phi", {"qk_layernorm": True}),
    "cohere_normed": ("cohere", {"use_qk_norm": True}),
    "falcon_alibi": ("falcon", {**_PLAIN_FALCON, "alibi": True}),
    "falcon_rotary": ("falcon", {**_PLAIN_FALCON, "alibi": False}),
    "whisper_encoder": ("whisper", {}),
    "t5_everything": ("t5", {}),
    "glm4_moe_norm": ("glm4_moe", {"use_qk_norm": True}),
    **{f"{family}_{stack}": (family, {}) for family, stack in ALONE},
}
SAMPLE = (
    *("llama", "qwen3", "olmo2", "phi3", "gemma2", "gpt2", "codegen", "falcon", "falcon_alibi", "gpt_oss"),
    *("llava", "whisper", "moonshine", "t5", "bert", "modernbert", "vit"),
)
"""One variant of each kind of attention: by default the matrix runs these alone, and all with `pytest -m matrix`."""


def in_matrix(variants: Iterable[str]) -> list[Any]:
    """Parameters of a test that holds for all of these, run by default for those of the sample."""
    marks = {True: (pytest.mark.matrix, pytest.mark.sample), False: (pytest.mark.matrix,)}
    return [pytest.param(variant, marks=marks[variant in SAMPLE]) for variant in variants]


STACKS = {
    **{"whisper_encoder": ("encoder",), "t5_everything": ("encoder", "decoder", "cross")},
    **{f"{family}_{stack}": (stack,) for family, stack in ALONE},
}


def build_family(folder: Path, variant: str, seed: int = 0) -> Path:
    """Save a random model; biases and norms too are random."""
    family, changes = VARIANTS[variant]
    torch.manual_seed(seed)
    data = FAMILIES[family]
    settings = {**CONFIGS[family], **changes}
    config = getattr(transformers, data.config)(**settings)
    if family == "stablelm":
        config.rope_parameters["partial_rotary_factor"] = 0.5
    name = next((n for a, n in data.classes.items() if a != "AutoModel"), data.classes["AutoModel"])
    if data.task in ("embedding", "image", "pair"):
        name = data.classes["AutoModel"]
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias") or "norm" in path.lower():
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif path.endswith("sinks"):
                parameter.copy_(torch.randn_like(parameter))
            elif parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * (1.3 / parameter.shape[1] ** 0.5))
    model.save_pretrained(folder)
    return folder


def inputs_of(variant: str, length: int = 20) -> dict[str, torch.Tensor]:
    """One input of what a family takes."""
    task = FAMILIES[VARIANTS[variant][0]].task
    rng = torch.Generator().manual_seed(5)
    ids = torch.randint(4, VOCAB, (2, length), generator=rng)
    if task == "image":
        return {"pixel_values": torch.randn(2, 3, 24, 24, generator=rng)}
    if task == "speech":
        family = FAMILIES[VARIANTS[variant][0]]
        waves = family.model_type != "whisper"
        sound = torch.randn(2, *((900,) if waves else (8, 40)), generator=rng)
        sound = {"input_values" if waves else "input_features": sound}
        return sound if len(family.stacks) == 1 else {**sound, "decoder_input_ids": ids}
    if task == "translation":
        return {"input_ids": ids.flip(1), "decoder_input_ids": ids}
    if task == "pair":
        return {"input_ids": ids, "pixel_values": torch.randn(3, 3, 24, 24, generator=rng)}
    return {"input_ids": ids}


def padded_inputs_of(variant: str) -> dict[str, torch.Tensor]:
    """The same with the end of the first row masked, where a family takes a mask."""
    inputs = inputs_of(variant)
    name = next((name for name in ("input_ids", "input_values") if name in inputs), None)
    if name is None:
        return inputs
    mask = torch.ones(inputs[name].shape, dtype=torch.long)
    mask[0, -inputs[name].shape[1] // 4 :] = 0
    return {**inputs, "attention_mask": mask}


@torch.inference_mode()
def output_of(folder: Path, variant: str) -> torch.Tensor:
    """Logits or last hidden states of a checkpoint."""
    return run(gqakit.load(folder, dtype=torch.float32), inputs_of(variant))


@torch.inference_mode()
def run(model: Any, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    """Logits or last hidden states of a model."""
    made = model(**inputs, **more)
    name = next(name for name in ("logits", "logits_per_image", "last_hidden_state") if name in made)
    return made[name]


def edit_layers(folder: Path, variant: str, change: Any) -> None:
    """Rewrite every attention layer of the converted stacks: `change(weights)` gives the new one."""
    source = Source.open(folder, STACKS.get(variant, ()))
    spec = source.spec
    tensors = load_file(folder / "model.safetensors")
    for layer in range(spec.num_layers):
        changed: AttentionWeights = change(source.layer(layer), spec)
        tensors |= tensors_of_layer(spec, layer, changed)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
