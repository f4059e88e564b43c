"""Blocks run one by one are the model, whatever its family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import QUICK, succeeds
from family_models import HIDDEN, build_family, inputs_of
from tiny_fixtures import Models
from tiny_models import prompt_ids

import gqakit
from gqakit.checkpoint import Checkpoint
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.recovery.repair.blocks import RepairBlocks


def check(target: Checkpoint, spec: ModelSpec, windows: torch.Tensor) -> list[bool]:
    """Compare with the whole model; returns for each block whether it adds the attention's output as it is."""
    whole = gqakit.load(target.path, dtype=torch.float32)
    whole(input_ids=windows, use_cache=False)
    found: list[bool] = []
    seen: list[torch.Tensor] = []
    for layer in range(spec.num_layers):
        spec.block(whole, layer).register_forward_hook(
            lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    whole(input_ids=windows, use_cache=False)
    blocks = RepairBlocks(target, spec, "cpu")
    ((_, hidden),) = blocks.entering(0, {0: {"input_ids": windows, "use_cache": False}})
    for layer in range(spec.num_layers):
        with blocks.block(layer) as block:
            added, after = block.run(hidden)
            assert torch.equal(added, block.attend(hidden))
            assert all(name in target.tensors for name in block.projections)
            shapes = {name: tuple(p.shape) for name, p in block.projections.items()}
            assert shapes == {name: target.info(name).shape for name in shapes}
            found.append(block.adds_attention(hidden))
        torch.testing.assert_close(after, seen[layer], rtol=1e-4, atol=1e-4)
        hidden = after
    assert all(parameter.device.type == "meta" for parameter in blocks._blocks.model.parameters())
    return found


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])  # plain, with biases, with norms of q and k
def test_blocks_of_a_grouped_model(model: Models, family: str) -> None:
    source = Source.open(model(family))
    spec = source.spec
    how = ("--kv-heads", 3, "--method", "neighbour", "--merge", "mean", *QUICK)
    succeeds("convert", source.path, "-o", "plain", *how)
    assert all(check(Checkpoint.open("plain"), spec, prompt_ids(24)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "adds"),
    [
        *(("llama", True), ("phi3", True), ("gpt2", True), ("opt", True), ("stablelm", True)),
        *(("gemma2", False), ("olmo2", False), ("gpt_neox", False), ("bloom", False)),
        *(("falcon", False), ("falcon_alibi", None), ("gemma3_text", False)),
    ],
)
def test_blocks_of_every_language_model(tmp_path: Path, variant: str, adds: bool | None) -> None:
    opened = Source.open(build_family(tmp_path / "m", variant))
    spec = opened.spec
    found = check(opened.checkpoint, spec, inputs_of(variant)["input_ids"][:1])
    assert spec.hidden_size == HIDDEN
    if adds is not None:
        assert set(found) == {adds}
