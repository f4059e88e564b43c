"""Tiny grouped models, and the stock multi-head model each must equal: its k/v heads repeated."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gqakit.models.describe import describe_model
from gqakit.models.families import FAMILIES as KNOWN
from gqakit.models.grouped_config import grouped_config
from gqakit.models.shipping import shipped_code

NUM_LAYERS, NUM_HEADS = 4, 8
Maps = list[tuple[list[int], list[int]]]

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_HEADS,
    "head_dim": 8,  # times the heads is 64, not the hidden size
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict] = {
    "llama": {**COMMON, "tie_word_embeddings": True},
    "mistral": {**COMMON, "sliding_window": None},
    "qwen2": {**COMMON, "hidden_size": 64, "initializer_range": 0.15},
    "qwen3": {**COMMON, "attention_bias": True},
}
del FAMILIES["qwen2"]["head_dim"]  # its configs have none

CONTIGUOUS, UNEQUAL = [0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 2, 1, 0, 0]
IDENTITY, ONE = list(range(8)), [0] * 8
SAME: Maps = [(CONTIGUOUS, CONTIGUOUS), (UNEQUAL, UNEQUAL), (IDENTITY, IDENTITY), (ONE, ONE)]
DIFFERING: Maps = [
    (CONTIGUOUS, [0, 0, 1, 1, 2, 2, 3, 3]),
    (UNEQUAL, [2, 0, 1, 0, 1, 1, 1, 0]),  # as many heads, another map
    (IDENTITY, ONE),
    (UNEQUAL, UNEQUAL),
]
IDENTITIES: Maps = [(IDENTITY, IDENTITY)] * NUM_LAYERS
MAPS: dict[str, Maps] = {"same": SAME, "differing": DIFFERING}


def stock_config(family: str, **changes: object) -> dict:
    """A raw multi-head config as a `config.json` holds it."""
    return {"model_type": family, "architectures": ["Stock"], **FAMILIES[family], **changes}


def grouped_raw(raw: dict, maps: Maps) -> dict:
    """The raw config of a grouped checkpoint made of a stock one."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return grouped_config(raw, describe_model(KNOWN, raw, shapes, 4), maps)


def build(raw: dict, seed: int = 0) -> PreTrainedModel:
    """A model of a raw config with random weights, biases and norms included."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**raw)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def pair(family: str, maps: Maps, **changes: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A grouped model and its stock multi-head equal."""
    raw = stock_config(family, **changes)
    grouped = build(grouped_raw(raw, maps))
    stock = build(raw, seed=1)
    stock.load_state_dict(repeated(grouped, maps))
    return grouped, stock


def repeated(grouped: PreTrainedModel, maps: Maps) -> dict[str, torch.Tensor]:
    """The grouped model's tensors with each k/v head copied to every query head that reads it."""
    state = dict(grouped.state_dict())
    head_dim = grouped.model.layers[0].self_attn.head_dim
    for index, layer_maps in enumerate(maps):
        for name, head_of_query in zip(("k_proj", "v_proj"), layer_maps, strict=True):
            for kind in ("weight", "bias"):
                key = f"model.layers.{index}.self_attn.{name}.{kind}"
                if key in state:
                    heads = state[key].unflatten(0, (-1, head_dim))
                    state[key] = heads[head_of_query].flatten(0, 1)
    return state


def write_checkpoint(folder: Path, model: PreTrainedModel, raw: dict) -> Path:
    """A grouped checkpoint as the converter writes it: config, weights, model code."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    tied = model.config.tie_word_embeddings
    state = {
        name: t.contiguous()
        for name, t in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in shipped_code(raw["gqakit"]["base_model_type"]).items():
        (folder / name).write_bytes(content)
    return folder


def tokens(batch: int = 2, length: int = 11, seed: int = 3) -> torch.Tensor:
    """Random token ids without padding and special tokens, `[batch, length]`."""
    return torch.randint(
        2, COMMON["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed)
    )
