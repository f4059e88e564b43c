"""Blocks run one by one are the model, whatever its family."""

from __future__ import annotations

import pytest
import torch
from command import QUICK, succeeds
from tiny_fixtures import Models
from tiny_models import prompt_ids

import gqakit
from gqakit.checkpoint import Checkpoint
from gqakit.inspection import open_model
from gqakit.training.repair_blocks import Blocks


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_blocks_one_by_one_are_the_model(model: Models, family: str, grouped: bool) -> None:
    source, spec = open_model(str(model(family)))
    path = source.path
    if grouped:
        how = ("--kv-heads", 3, "--method", "neighbour", "--merge", "mean", *QUICK)
        succeeds("convert", path, "-o", "plain", *how)
    target = Checkpoint.open("plain") if grouped else source
    windows = prompt_ids(24).repeat(2, 1)
    whole = gqakit.load(target.path, dtype=torch.float32)
    expected = whole(input_ids=windows, output_hidden_states=True, use_cache=False).hidden_states
    blocks = Blocks(target, spec, "cpu")
    hidden = torch.cat(list(blocks.entering(windows)))
    for layer in range(spec.num_layers):
        torch.testing.assert_close(hidden, expected[layer], rtol=1e-5, atol=1e-5)
        with blocks.block(layer) as block:
            added, after = block.run(hidden)
            assert torch.equal(added, block.attend(hidden))
            biases = 3 if family == "qwen2" else 0
            assert len(block.projections) == 4 + biases
            assert all(name in target.tensors for name in block.projections)
        hidden = after
    assert all(parameter.device.type == "meta" for parameter in blocks._model.parameters())
