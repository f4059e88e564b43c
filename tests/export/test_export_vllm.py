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
from gqakit.models.head_layout import pad_layer
from gqakit.models.vllm.plugin import register

Models = Callable[..., Path]


class Layer:
    """Keeps the config that it is built from."""

    def __init__(self, vllm_config: Any, prefix: str, config: Any) -> None:
        self.config = config


class Model:
    """Builds its layers as vLLM does, and keeps the weights that it is given."""

    def __init__(self, *, vllm_config: Any, prefix: str, layer_type: Any) -> None:
        self.config = vllm_config.model_config.hf_config
        count = self.config.num_hidden_layers
        self.layers = [layer_type(vllm_config=vllm_config, prefix=f"model.layers.{i}") for i in range(count)]

    def load_weights(self, weights: Any) -> set[str]:
        self.loaded = dict(weights)
        return set(self.loaded)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A vLLM that can be imported; what is registered with it."""
    found: dict[str, str] = {}
    names = ["vllm", "vllm.model_executor", "vllm.model_executor.models", "vllm.model_executor.models.llama"]
    for name in names:
        module: Any = ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["vllm"].ModelRegistry = SimpleNamespace(register_model=found.__setitem__)  # type: ignore[attr-defined]
    llama: Any = sys.modules[names[-1]]
    llama.LlamaDecoderLayer, llama.LlamaForCausalLM = Layer, Model
    monkeypatch.delitem(sys.modules, "gqakit.models.vllm.llama", raising=False)
    return found


def test_without_vllm_nothing_happens() -> None:
    register()


@pytest.mark.parametrize("layout", ["unequal", "apart"])
def test_weights_and_heads_are_padded(grouped: Models, registered: dict[str, str], layout: str) -> None:
    register()
    module, _, name = registered["GqakitLlamaForCausalLM"].partition(":")
    path = grouped("llama", layout, attention_bias=True)
    config = AutoConfig.from_pretrained(path)
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
    for name, expected in source.rearranged(arrangements).items():
        torch.testing.assert_close(made.loaded[name], expected.produce(), rtol=0, atol=0)
    assert torch.equal(made.loaded["lm_head.weight"], tensors["lm_head.weight"])
