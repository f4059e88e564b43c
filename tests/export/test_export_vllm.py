"""The vLLM plugin against stand-ins for vLLM's classes; benchmarks/vllm_check.py runs the real ones."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import all_tensors
from transformers import AutoConfig

from gqakit.exporters.source import ExportSource
from gqakit.models.engines import ENGINES
from gqakit.models.head_layout import pad_layer
from gqakit.models.vllm.padding import layer_config
from gqakit.models.vllm.plugin import MODELS, register

Models = Callable[..., Path]


class Attention:
    """Stands for vLLM's attention."""


class Layer:
    """Keeps what it is built from."""

    def __init__(self, *args: Any, config: Any = None, prefix: str = "", **kwargs: Any) -> None:
        self.config, self.kwargs = config or args[0], kwargs


class Llama:
    """Builds its layers as vLLM's Llama does, and keeps the weights that it is given."""

    def __init__(self, *, vllm_config: Any, prefix: str, layer_type: Any) -> None:
        self.config = vllm_config.model_config.hf_config
        count = self.config.num_hidden_layers
        self.layers = [layer_type(vllm_config, f"model.layers.{i}") for i in range(count)]

    def load_weights(self, weights: Any) -> set[str]:
        self.loaded = dict(weights)
        return set(self.loaded)


class Mixtral(Llama):
    """Builds those layers that its module has."""

    def __init__(self, *, vllm_config: Any, prefix: str) -> None:
        self.config = vllm_config.model_config.hf_config
        kind = sys.modules["vllm.model_executor.models.mixtral"].MixtralDecoderLayer  # type: ignore[attr-defined]
        count = self.config.num_hidden_layers
        self.layers = [kind(self.config, None, prefix=f"model.layers.{i}") for i in range(count)]


STAND_INS: dict[str, dict[str, Any]] = {
    "": {},
    ".model_executor": {},
    ".model_executor.layers": {},
    ".model_executor.layers.layernorm": {"RMSNorm": Layer},
    ".model_executor.models": {},
    ".model_executor.models.llama": {
        "LlamaAttention": Attention,
        "LlamaDecoderLayer": Layer,
        "LlamaForCausalLM": Llama,
    },
    ".model_executor.models.mixtral": {"MixtralDecoderLayer": Layer, "MixtralForCausalLM": Mixtral},
}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A vLLM that can be imported; what is registered with it."""
    found: dict[str, str] = {}
    for name, members in STAND_INS.items():
        module: Any = ModuleType(f"vllm{name}")
        module.__spec__ = importlib.util.spec_from_loader(f"vllm{name}", loader=None)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, f"vllm{name}", module)
    models: Any = sys.modules["vllm.model_executor.models"]
    models.mixtral = sys.modules["vllm.model_executor.models.mixtral"]
    sys.modules["vllm"].ModelRegistry = SimpleNamespace(register_model=found.__setitem__)  # type: ignore[attr-defined]
    for name in ("llama", "mixtral"):
        monkeypatch.delitem(sys.modules, f"gqakit.models.vllm.{name}", raising=False)
    return found


def test_without_vllm_nothing_happens() -> None:
    register()


def test_the_table_of_engines_names_the_families_of_the_plugin() -> None:
    assert set(MODELS) == set(ENGINES["vllm"].families or ())


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("layout", ["unequal", "apart"])
def test_weights_and_heads_are_padded(
    grouped: Models, registered: dict[str, str], family: str, layout: str
) -> None:
    register()
    module, _, name = registered[MODELS[family][0]].partition(":")
    path = grouped(family, layout, **{"attention_bias": True} if family in ("llama", "qwen3") else {})
    config = AutoConfig.from_pretrained(path)
    assert config.architectures == [MODELS[family][0]]
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_config=config))
    made = getattr(importlib.import_module(module), name)(vllm_config=vllm_config)
    tensors = all_tensors(path)
    made.load_weights(tensors.items())
    source = ExportSource.open(str(path))
    arrangements = [pad_layer(heads) for heads in source.heads]
    for layer, arrangement in zip(made.layers, arrangements, strict=True):
        own = layer.config
        assert own.num_attention_heads == arrangement.num_heads
        assert own.num_key_value_heads == arrangement.num_kv_heads
        assert own.head_dim == 8
        assert getattr(own, "qkv_bias", False) == (family == "qwen2")
        assert ("attn_layer_type" in layer.kwargs) == (family == "qwen3")
    rearranged = {name: tensor.produce() for name, tensor in source.rearranged(arrangements).items()}
    if family == "phi3":
        rearranged = _cut(rearranged, arrangements)
    for name, expected in rearranged.items():
        torch.testing.assert_close(made.loaded.pop(name), expected, rtol=0, atol=0)
    others = {name for name in tensors if "self_attn" not in name or "norm" in name}
    assert made.loaded.keys() - others <= {f"model.layers.{i}.self_attn.o_proj.bias" for i in range(4)}
    assert all(torch.equal(made.loaded[name], tensors[name]) for name in made.loaded)


def _cut(tensors: dict[str, Any], arrangements: list[Any]) -> dict[str, Any]:
    """A fused projection in parts, as vLLM's Llama loads them."""
    parts: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if "qkv_proj" not in name:
            parts[name] = tensor
            continue
        heads = arrangements[int(name.split(".")[2])]
        sizes = [8 * count for count in (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)]
        for role, part in zip("qkv", tensor.split(sizes), strict=True):
            parts[name.replace("qkv_proj", f"{role}_proj")] = part
    return parts


def test_keys_merged_behind_their_normalisation_are_refused(grouped: Models) -> None:
    config = AutoConfig.from_pretrained(grouped("qwen3"))
    config.gqakit["layers"][2]["merged_keys"] = [0] * 9
    with pytest.raises(ValueError, match="keys of this checkpoint are merged"):
        layer_config(config, "model.layers.0")
