"""Groups padded with query heads that nothing reads: a layer's config, and weights as vLLM loads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from gqakit.models.head_layout import Arrangement, pad_layer
from gqakit.models.remote_code.heads import HeadMaps

Weights = Iterable[tuple[str, torch.Tensor]]

_PROJECTION = re.compile(r"(.*layers\.(\d+)\.self_attn\.)(q|k|v|o|qkv)(_proj\.(?:weight|bias))$")


def layer_config(config: Any, prefix: str) -> SimpleNamespace:
    """The config with one layer's own numbers of heads, for vLLM's layer to read.

    Args:
        config: the grouped model's. prefix: of the layer's weights; ends with its index.

    Raises:
        ValueError: keys of the checkpoint are merged behind their normalisation.
    """
    heads: list[HeadMaps] = config.layer_heads()
    if any(each.merged_keys for each in heads):
        raise ValueError(
            "vLLM runs a layer's normalisations without the maps behind them, and keys of this checkpoint are merged "
            "there. Convert with `--for vllm`."
        )
    arrangement = pad_layer(heads[int(prefix.rpartition(".")[2])])
    own = {
        "num_attention_heads": arrangement.num_heads,
        "num_key_value_heads": arrangement.num_kv_heads,
        "head_dim": config.gqakit["head_dim"],
    }
    return SimpleNamespace(**{**config.to_dict(), **own})


def padded(weights: Weights, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's tensors, those of attention rearranged and a fused projection cut.

    Args:
        weights: by their names in the checkpoint. config: the grouped model's.
    """
    layers: list[HeadMaps] = config.layer_heads()
    for name, weight in weights:
        found = _PROJECTION.fullmatch(name)
        if found is None:
            yield name, weight
            continue
        before, heads, role, after = found[1], layers[int(found[2])], found[3], found[4]
        arrangement = pad_layer(heads)
        if role == "qkv":
            sizes = [len(heads.key_head_of_query), heads.num_key_heads, heads.num_value_heads]
            parts = weight.unflatten(0, (sum(sizes), -1)).split(sizes)  # [heads, head_dim, width] each
            for each, part in zip("qkv", parts, strict=True):
                yield f"{before}{each}{after}", _padded(each, part.flatten(0, 1), arrangement)
        elif name.endswith("o_proj.bias"):
            yield name, weight
        else:
            yield name, _padded(role, weight, arrangement)


def _padded(role: str, weight: torch.Tensor, arrangement: Arrangement) -> torch.Tensor:
    if role == "o":
        columns = weight.unflatten(1, (len(set(arrangement.query)), -1))[:, list(arrangement.query)]
        live = torch.tensor(arrangement.live, dtype=columns.dtype)
        return (columns * live[None, :, None]).flatten(1)  # [width, places · head_dim]
    heads = {"q": arrangement.query, "k": arrangement.key, "v": arrangement.value}[role]
    return weight.unflatten(0, (max(heads) + 1, -1))[list(heads)].flatten(0, 1)
