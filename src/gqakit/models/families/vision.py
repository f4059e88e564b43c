"""Encoders of images: ViT, DeiT, DINOv2 with and without registers, the image side of CLIP."""

from __future__ import annotations

from gqakit.models.families.base import Family, Names, Stack, classes

_STORED = Names("attention.query", "attention.key", "attention.value", "output.dense")
_VIT = Stack(
    name="encoder",
    home="layers.{layer}.attention",
    block="layers.{layer}",
    stored_home="encoder.layer.{layer}.attention",
    stored_names=_STORED,
    cached=False,
)
_DINOV2 = Stack(
    name="encoder",
    home="encoder.layer.{layer}.attention",
    block="encoder.layer.{layer}",
    stored_names=_STORED,
    cached=False,
)
_CLIP = Stack(
    name="encoder",
    home="encoder.layers.{layer}.self_attn",
    names=Names(output="out_proj"),
    block="encoder.layers.{layer}",
    cached=False,
)


def _family(model_type: str, prefix: str, stored_prefix: str, stack: Stack, *heads: str) -> Family:
    return Family(
        model_type,
        classes(prefix, *heads),
        stacks=(stack,),
        prefixes=(f"{stored_prefix}.", ""),
        task="image",
        num_kv_heads=None,
        positions="none",
    )


VIT = _family("vit", "ViT", "vit", _VIT, "ForImageClassification")
DINOV2 = _family("dinov2", "Dinov2", "dinov2", _DINOV2, "ForImageClassification")
DEIT = _family("deit", "DeiT", "deit", _VIT, "ForImageClassification")
DINOV2_REGISTERS = _family(
    "dinov2_with_registers", "Dinov2WithRegisters", "dinov2_with_registers", _DINOV2, "ForImageClassification"
)
CLIP_VISION = _family("clip_vision_model", "CLIPVision", "vision_model", _CLIP)
