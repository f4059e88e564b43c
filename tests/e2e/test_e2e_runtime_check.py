"""`verify` runs the source by transformers' code against grouped attention with the source's own heads."""

from functools import partial
from pathlib import Path

import pytest
import torch
from family_models import CONFIGS, build_family, in_matrix, inputs_of, run

from gqakit.calibration.collect import collect_statistics
from gqakit.conversion.checks import check_runtime, identity_model
from gqakit.errors import FamilyError
from gqakit.models.attention_hook import Attending, watched_attention
from gqakit.models.load import load, use_attention_interface
from gqakit.models.source import Source


def checked(folder: Path, family: str, change=lambda model: None):
    source = Source.open(folder)
    stock = load(folder, dtype=torch.float32)
    change(stock)
    batch = {name: tensor[:1] for name, tensor in inputs_of(family).items()}
    return check_runtime(source, stock, batch)


EAGER = ("gptj", "codegen", "bloom", "mpnet", "mpt", "gpt_oss", "moonshine")
"""Families whose own attention in transformers is no SDPA, or pads heads, so that sums are taken in another order."""


@pytest.mark.parametrize("family", in_matrix(CONFIGS))
def test_the_grouped_runtime_with_the_sources_heads_is_the_source(family: str, tmp_path: Path) -> None:
    """To the bit, where transformers' code calls the same function."""
    source = Source.open(build_family(tmp_path / "source", family))
    stock, inputs = load(source.path, dtype=torch.float32), inputs_of(family)
    expected = run(stock, inputs)
    seen = run(identity_model(source, stock), inputs)
    if family in EAGER:
        assert torch.allclose(seen, expected, atol=5e-6 * float(expected.abs().max()))
    else:
        assert torch.equal(seen, expected)
    check = checked(source.path, family)
    assert check.name == "runtime"
    assert check.passed, check.detail


@pytest.mark.parametrize("family", in_matrix(CONFIGS))
def test_what_calibration_looks_at_is_what_the_model_computes(family: str, tmp_path: Path) -> None:
    """Every attention layer is seen, with the cached heads that it has, and the output stays what it is."""
    source = Source.open(build_family(tmp_path / "source", family)).with_all_stacks()
    model = load(source.path, dtype=torch.float32)
    inputs = inputs_of(family)
    expected = run(model, inputs)
    use_attention_interface(model, source.spec)
    seen: list[tuple[int, int]] = []

    def look(layer: int, call: Attending) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((layer, call.query.shape[1]))
        return call.key, call.value

    layers = range(source.spec.num_layers)
    looks = {source.spec.attention_module(model, layer): partial(look, layer) for layer in layers}
    with watched_attention(model, looks):
        watched = run(model, inputs)
    assert sorted(seen) == list(enumerate(source.spec.heads))
    assert torch.allclose(watched, expected, atol=2e-5 * float(expected.abs().max()))


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


@pytest.mark.parametrize("family", ["bloom", "falcon", "mpnet"])
def test_calibration_that_sees_no_attention_is_an_error(family: str, tmp_path: Path) -> None:
    """These refuse to have their attention function set, of which transformers only logs."""
    source = Source.open(build_family(tmp_path / "source", family))
    model, batches = load(source.path, dtype=torch.float32), [inputs_of(family)]
    with pytest.raises(FamilyError, match="its attention was not observed"):
        collect_statistics(model, source.spec, batches)
    use_attention_interface(model, source.spec)
    assert all(
        float(found.value.abs().sum()) > 0
        for found in collect_statistics(model, source.spec, batches).values()
    )
