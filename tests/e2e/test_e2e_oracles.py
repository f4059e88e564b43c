"""Models whose best conversion is known: it must lose nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from command import QUICK, succeeds
from tiny_fixtures import Models
from tiny_models import FAMILIES, HEADS, all_tensors, build, edit_tensors, logits
from torch import Tensor

ROTARY = ("llama", "mistral", "qwen2")
Tensors = dict[str, Tensor]


def copies(layers: int, of_head: Sequence[int], *, turned: bool = False):
    """Makes KV head `h` of each layer a copy of head `of_head[h]`, turned by a random map that positions allow.

    The assignment is shifted from layer to layer. Biases turn with their weights.
    """

    def change(tensors: Tensors) -> None:
        rng = torch.Generator().manual_seed(5)
        for layer in range(layers):
            at = [of_head[(h + layer) % len(of_head)] for h in range(len(of_head))]
            for name, turn in (("k_proj", _in_planes), ("v_proj", _any)):
                prefix = f"model.layers.{layer}.self_attn.{name}"
                dim = tensors[f"{prefix}.weight"].shape[0] // len(at)
                eye = torch.eye(dim, dtype=torch.float64)
                maps = [turn(dim, rng) if turned else eye for _ in at]
                for part in ("weight", "bias"):
                    if (key := f"{prefix}.{part}") in tensors:
                        heads = tensors[key].double().unflatten(0, (len(at), dim))
                        made = [m @ heads[first] for m, first in zip(maps, at, strict=True)]
                        tensors[key] = torch.cat(made).to(tensors[key].dtype)

    return change


def _in_planes(dim: int, rng: torch.Generator) -> Tensor:
    """A rotation by a random angle in every rotary plane `(j, j + dim/2)`."""
    angle = torch.rand(dim // 2, generator=rng, dtype=torch.float64) * 2 * math.pi
    cos, sin = angle.cos().diag(), angle.sin().diag()
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])


def _any(dim: int, rng: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=rng, dtype=torch.float64)).Q


def loss(source: Path, out: Path) -> float:
    """Largest difference between two models' logits."""
    return float((logits(source) - logits(out)).abs().max())


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_of_one_changes_no_bit(model: Models, family: str, sharded: bool) -> None:
    source = model(family, sharded=sharded, dtype=torch.bfloat16)
    succeeds("convert", source, "-o", "out", "--kv-ratio", 1, *QUICK)
    for path in [*source.glob("*.safetensors*"), source / "config.json"]:
        assert (Path("out") / path.name).read_bytes() == path.read_bytes(), path.name
    succeeds("verify", source, "out")


@pytest.mark.parametrize("kv_heads", [8, 4], ids=["multi-head", "grouped-query"])
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"phi3"}))
def test_merging_duplicates_loses_nothing(family: str, kv_heads: int) -> None:
    source = build(Path("model"), family, kv_heads=kv_heads, num_hidden_layers=2)
    kept = kv_heads // 2
    pattern = {8: [0, 1, 2, 3, 0, 2, 1, 3], 4: [0, 1, 0, 1]}[kv_heads]
    edit_tensors(source, copies(2, pattern))
    succeeds("convert", source, "-o", "out", "--kv-heads", kept, "--merge", "mean", *QUICK)
    assert json.loads((Path("out") / "config.json").read_text())["num_key_value_heads"] == kept
    assert loss(source, Path("out")) < 1e-5
    succeeds("verify", source, "out")


@pytest.mark.parametrize("from_weights", [False, True], ids=["moments", "weights-only"])
@pytest.mark.parametrize("merge", ["fold", "aligned"])
@pytest.mark.parametrize("family", ROTARY)
def test_merging_turned_copies_loses_nothing(family: str, merge: str, from_weights: bool) -> None:
    """The synthetic known answer: 8 KV heads that are 2, each turned its own way, in groups of 5 and 3."""
    layers = 2 if family == "llama" else 1  # the search over 255 groups is what takes time
    source = build(Path("model"), family, num_hidden_layers=layers)
    edit_tensors(source, copies(layers, [0, 1, 0, 0, 1, 0, 1, 0], turned=True))
    how = ("--kv-heads", 2, "--merge", merge)
    if from_weights:
        succeeds("plan", source, *how, "-o", "plan.json")
        succeeds("convert", source, "-o", "out", "--plan", "plan.json")
    else:
        succeeds("convert", source, "-o", "out", *how, *QUICK)
    plan = json.loads((Path("out") / "gqakit-plan.json").read_text())
    assert plan["format"] == "grouped"
    assert (plan["moments"] is None) is from_weights
    for index, layer in enumerate(plan["layers"]):
        assert layer["key"] == layer["value"]
        sizes = sorted(layer["key"].count(group) for group in (0, 1))
        assert sizes == [3, 5], f"layer {index}"
        assert max(layer["key_error"], layer["value_error"]) < 1e-5
    assert loss(source, Path("out")) < 1e-4
    succeeds("verify", source, "out")


def test_the_mean_of_turned_copies_does_lose(model: Models) -> None:
    """So the test above would notice."""
    source = build(Path("model"), "llama", num_hidden_layers=2)
    edit_tensors(source, copies(2, [0, 1, 0, 0, 1, 0, 1, 0], turned=True))
    succeeds("plan", source, "--kv-heads", 2, "--merge", "mean", "-o", "plan.json")
    succeeds("convert", source, "-o", "out", "--plan", "plan.json")
    assert loss(source, Path("out")) > 1e-2


def test_where_keys_are_normalised_the_plan_says_they_fall_back_to_mean(model: Models) -> None:
    source = model("qwen3", kv_heads=4)
    ran = succeeds("plan", source, "--kv-heads", 2, "--merge", "fold", "-o", "plan.json")
    plan = json.loads(Path("plan.json").read_text())
    assert plan["merging"] == {"rule": "fold", "key": "mean", "value": "fold"}
    assert "normalises keys" in plan["notes"][0]
    assert "mean for keys, fold for values" in ran.out
    assert plan["notes"][0] in succeeds("plan", "show", "plan.json").out
    succeeds("convert", source, "-o", "out", "--plan", "plan.json")
    assert plan["notes"][0] in (Path("out") / "README.md").read_text()


def test_one_head_is_the_mean_when_the_rule_is_the_mean(model: Models) -> None:
    source = model("llama")
    succeeds("convert", source, "-o", "out", "--kv-heads", 1, "--method", "mqa", "--merge", "mean", *QUICK)
    before, after = all_tensors(source), all_tensors(Path("out"))
    for name, tensor in before.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            mean = tensor.double().unflatten(0, (HEADS, -1)).mean(0)
            assert torch.allclose(after[name].double(), mean, rtol=0, atol=1e-7), name
        elif name.endswith(("q_proj.weight", "o_proj.weight")):
            assert torch.equal(after[name], tensor), name
