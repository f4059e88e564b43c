"""A layer read out of tensors, and written back into them."""

import re

import pytest
import torch
from torch import Tensor

from gqakit.errors import CheckpointError
from gqakit.models.describe import describe_model
from gqakit.models.families import FAMILIES
from gqakit.models.layers import read_layer, tensors_of_layer
from gqakit.models.spec import ModelSpec

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}


def checkpoint(biases: str = "qv") -> tuple[ModelSpec, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    rows = {"q": 24, "k": 12, "v": 12}
    tensors: dict[str, Tensor] = {}
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn."
        for name, count in rows.items():
            tensors[f"{at}{name}_proj.weight"] = torch.randn(count, 12, generator=rng).bfloat16()
            if name in biases:
                tensors[f"{at}{name}_proj.bias"] = torch.randn(count, generator=rng).bfloat16()
        tensors[f"{at}o_proj.weight"] = torch.randn(12, 24, generator=rng).bfloat16()
    return describe_model(FAMILIES, CONFIG, {n: tuple(t.shape) for n, t in tensors.items()}, 2), tensors


@pytest.mark.parametrize("biases", ["", "qv", "qkv"])
def test_round_trip(biases):
    spec, tensors = checkpoint(biases)
    for layer in range(2):
        out = tensors_of_layer(spec, layer, read_layer(spec, layer, tensors.__getitem__))
        expected = {name: t for name, t in tensors.items() if f".{layer}." in name}
        assert out.keys() == expected.keys()
        for name, tensor in out.items():
            assert torch.equal(tensor, expected[name])
            assert tensor.dtype == torch.bfloat16
            assert tensor.is_contiguous()


def test_heads_are_blocks_of_rows_and_of_output_columns():
    spec, tensors = checkpoint()
    weights = read_layer(spec, 1, tensors.__getitem__)
    at = "model.layers.1.self_attn."
    assert (weights.num_heads, weights.num_kv_heads) == (4, 2)
    assert torch.equal(weights.query.weight[2], tensors[at + "q_proj.weight"][12:18])
    assert torch.equal(weights.query.bias[2], tensors[at + "q_proj.bias"][12:18])
    assert torch.equal(weights.key.weight[1], tensors[at + "k_proj.weight"][6:])
    assert weights.key.bias is None
    assert torch.equal(weights.value.bias[0], tensors[at + "v_proj.bias"][:6])
    assert torch.equal(weights.output[3], tensors[at + "o_proj.weight"][:, 18:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.bias", "o_proj.weight"]
)
def test_values_that_are_not_finite_are_refused_by_name(bad, name):
    spec, tensors = checkpoint()
    name = f"model.layers.1.self_attn.{name}"
    tensors[name].view(-1)[[3, 5]] = bad
    read_layer(spec, 0, tensors.__getitem__)
    with pytest.raises(CheckpointError, match=re.escape(name) + " holds 2 values that are NaN or infinite"):
        read_layer(spec, 1, tensors.__getitem__)
