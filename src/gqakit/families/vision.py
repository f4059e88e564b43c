"""Encoders of images: ViT, DINOv2, the image side of CLIP."""

from __future__ import annotations

from gqakit.families.base import Family, Names, Stack

_STORED = Names("attention.query", "attention.key", "attention.value", "output.dense")
VIT = Family(
    "vit",
    {"AutoModel": "ViTModel", "AutoModelForImageClassification": "ViTForImageClassification"},
    stacks=(
        Stack(
            name="encoder",
            home="layers.{layer}.attention",
            block="layers.{layer}",
            stored_home="encoder.layer.{layer}.attention",
            stored_names=_STORED,
            cached=False,
        ),
    ),
    prefixes=("vit.", ""),
    task="image",
    num_kv_heads=None,
    positions="none",
)
DINOV2 = Family(
    "dinov2",
    {"AutoModel": "Dinov2Model", "AutoModelForImageClassification": "Dinov2ForImageClassification"},
    stacks=(
        Stack(
            name="encoder",
            home="encoder.layer.{layer}.attention",
            block="encoder.layer.{layer}",
            stored_names=_STORED,
            cached=False,
        ),
    ),
    prefixes=("dinov2.", ""),
    task="image",
    num_kv_heads=None,
    positions="none",
)
CLIP_VISION = Family(
    "clip_vision_model",
    {"AutoModel": "CLIPVisionModel"},
    stacks=(
        Stack(
            name="encoder",
            home="encoder.layers.{layer}.self_attn",
            names=Names(output="out_proj"),
            block="encoder.layers.{layer}",
            cached=False,
        ),
    ),
    prefixes=("vision_model.", ""),
    task="image",
    num_kv_heads=None,
    positions="none",
)
