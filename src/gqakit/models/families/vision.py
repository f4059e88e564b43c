"""Encoders of images: ViT, DeiT, DINOv2 with and without registers; each side of CLIP and SigLIP alone, and both."""

from __future__ import annotations

from dataclasses import replace

from gqakit.models.families.base import Family, Names, Stack, Task, classes

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


def _family(
    model_type: str, prefix: str, stored_prefix: str, stack: Stack, *heads: str, task: Task = "image"
) -> Family:
    return Family(
        model_type,
        classes(prefix, *heads),
        stacks=(stack,),
        prefixes=(f"{stored_prefix}.", ""),
        task=task,
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
CLIP_TEXT = _family("clip_text_model", "CLIPText", "text_model", _CLIP, task="embedding")
SIGLIP_VISION = _family(
    "siglip_vision_model", "SiglipVision", "vision_model", _CLIP
)  # but for the attention of its pooling head
SIGLIP_TEXT = _family("siglip_text_model", "SiglipText", "text_model", _CLIP, task="embedding")


def _both(model_type: str, prefix: str) -> Family:
    """A model with a tower for text and one for images, each with its own part of the config."""
    towers = tuple(
        replace(
            _CLIP,
            name=name,
            home=f"{name}_model.{_CLIP.home}",
            block=f"{name}_model.{_CLIP.block}",
            part=f"{name}_config",
        )
        for name in ("text", "vision")
    )
    return Family(
        model_type,
        classes(prefix),
        stacks=towers,
        prefixes=("",),
        task="pair",
        num_kv_heads=None,
        positions="none",
        encoder_classes={f"{prefix}ForImageClassification": "image"},
    )


CLIP = _both("clip", "CLIP")
SIGLIP = _both("siglip", "Siglip")
