"""Tiny configs of multimodal models, and one input with an image for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IMAGE_TOKEN = 3
_LEGACY = {"image_token_index": IMAGE_TOKEN}
_IDS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 4,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}
_QWEN_SEES = {"depth": 2, "num_heads": 4, "patch_size": 8, "hidden_size": 64}


def multimodal_configs(text: dict[str, Any], tower: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By family, around a tiny text config and a tiny image tower of 9 patches."""
    clip = {"model_type": "clip_vision_model", **tower}
    siglip = {"model_type": "siglip_vision_model", **tower}
    pixtral = {"model_type": "pixtral", **tower}
    llama = {"model_type": "llama", **text}
    mistral = {"model_type": "mistral", **text, "head_dim": 16, "sliding_window": None}
    gemma3 = {"model_type": "gemma3_text", **text, "head_dim": 16, "sliding_window": 8}

    def mrope(*sections: int) -> dict[str, Any]:
        return {
            **text,
            "rope_parameters": {"rope_type": "default", "mrope_section": [*sections], "rope_theta": 1e4},
        }

    windows = {
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    deep = {
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    return {
        "llava": {**_LEGACY, "text_config": llama, "vision_config": clip, "vision_feature_layer": -1},
        "llava_next": {
            **{**_LEGACY, "text_config": mistral, "vision_config": clip, "vision_feature_layer": -1},
            "image_grid_pinpoints": [[24, 48], [48, 24]],
        },
        "paligemma": {
            **{**_LEGACY, "text_config": {"model_type": "gemma", **text, "head_dim": 16}},
            **{"vision_config": siglip, "projection_dim": 64, "hidden_size": 64},
        },
        "idefics3": {"text_config": llama, "vision_config": tower, "image_token_id": IMAGE_TOKEN, "scale_factor": 3},
        "smolvlm": {"text_config": llama, "vision_config": tower, "image_token_id": IMAGE_TOKEN, "scale_factor": 3},
        "mistral3": {
            **{**_LEGACY, "text_config": mistral, "vision_config": pixtral},
            **{"spatial_merge_size": 1, "vision_feature_layer": -1},
        },
        "gemma3": {
            **{**_LEGACY, "text_config": gemma3, "vision_config": {**siglip, "image_size": 32}},
            "mm_tokens_per_image": 4,
        },
        "qwen2_vl": {**_IDS, "text_config": mrope(1, 1, 2), "vision_config": {**_QWEN_SEES, "embed_dim": 64}},
        "qwen2_5_vl": {**_IDS, "text_config": mrope(1, 1, 2), "vision_config": {**_QWEN_SEES, **windows}},
        "qwen3_vl": {
            **{**_IDS, "text_config": {**mrope(4, 2, 2), "head_dim": 16}},
            "vision_config": {**_QWEN_SEES, **deep},
        },
    }  # fmt: skip


@torch.inference_mode()
def with_image(model: Any, family: str) -> dict[str, Tensor]:
    """One prompt with an image in it: as many image tokens as the model makes features of it."""
    rng = torch.Generator().manual_seed(3)
    shape = {"gemma3": (1, 3, 32, 32), "idefics3": (1, 1, 3, 24, 24), "smolvlm": (1, 1, 3, 24, 24)}
    shape |= {"llava_next": (1, 3, 3, 24, 24)} | dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), (16, 3 * 2 * 64)
    )
    image: dict[str, Tensor] = {"pixel_values": torch.randn(shape.get(family, (1, 3, 24, 24)), generator=rng)}
    if "qwen" in family:
        image["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    if family in ("llava_next", "mistral3"):
        image["image_sizes"] = torch.tensor([[24, 48 if family == "llava_next" else 24]])
    features = model.base_model.get_image_features(**image).pooler_output
    each = (features,) if isinstance(features, Tensor) else features
    count = sum(states.flatten(0, -2).shape[0] for states in each)  # of each image [tokens, D]
    ids = torch.randint(7, 160, (1, 12), generator=rng)
    row = [*ids[0, :5].tolist(), 5, *[IMAGE_TOKEN] * count, 6, *ids[0, 5:].tolist()]
    ids = torch.tensor([row])
    more = {"token_type_ids": (ids == IMAGE_TOKEN).long()} if family in ("gemma3", "paligemma") else {}
    if "qwen" in family:
        more["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **image, **more}
