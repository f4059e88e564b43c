"""`verify` runs the source by transformers' code against grouped attention with the source's own heads."""

from pathlib import Path

import pytest
import torch
from family_models import CONFIGS, build_family, inputs_of

from gqakit.conversion.checks import check_runtime
from gqakit.models.load import load
from gqakit.models.source import Source


def checked(folder: Path, family: str, change=lambda model: None):
    source = Source.open(folder)
    stock = load(folder, dtype=torch.float32)
    change(stock)
    batch = {name: tensor[:1] for name, tensor in inputs_of(family).items()}
    return check_runtime(source, stock, batch)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_grouped_runtime_with_the_sources_heads_is_the_source(family: str, tmp_path: Path) -> None:
    check = checked(build_family(tmp_path / "source", family), family)
    assert check.name == "runtime"
    assert check.passed, check.detail


def test_attention_that_the_runtime_does_not_run_fails(tmp_path: Path) -> None:
    """A norm for each head, as StableLM can have, of which the grouped forward pass knows nothing."""

    def normalise(model) -> None:
        for layer in model.model.layers:
            layer.self_attn.k_proj.register_forward_hook(
                lambda module, args, out: out / out.norm(dim=-1, keepdim=True)
            )

    assert not checked(build_family(tmp_path / "source", "stablelm"), "stablelm", normalise).passed


def test_the_source_is_left_as_it_was(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "source", "gpt_neox")
    stock = load(folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    ids = inputs_of("gpt_neox")["input_ids"][:1]
    check_runtime(Source.open(folder), stock, {"input_ids": ids})
    assert all(torch.equal(tensor, before[name]) for name, tensor in stock.state_dict().items())
