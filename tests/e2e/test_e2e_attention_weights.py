"""The attention weights of a grouped model are the source's, by every way to ask for them, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import CONFIGS, build_family, in_matrix, inputs_of
from transformers.utils.generic import ModelOutput

import gqakit
from gqakit.planning.make import plan


def weights_of(
    model: Any, inputs: dict[str, torch.Tensor], **asked: Any
) -> dict[str, tuple[torch.Tensor, ...]]:
    """All that a model puts out of attention weights; of a model with several towers, with the name of each before."""
    with torch.inference_mode():
        made = model(**inputs, **asked)
    towers = {f"{name} ": part for name, part in made.items() if isinstance(part, ModelOutput)}
    return {
        tower + name: part[name]
        for tower, part in {"": made, **towers}.items()
        for name in part
        if name.endswith("attentions") and part[name]
    }


@pytest.mark.parametrize("family", in_matrix(CONFIGS))
def test_weights_are_the_sources(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    made = plan(source, kv_ratio=1.0, merge="mean", method="neighbour", format="grouped", progress=False)
    gqakit.convert(source, tmp_path / "out", plan=made, progress=False)
    stock, grouped = (gqakit.load(path, dtype=torch.float32) for path in (source, tmp_path / "out"))
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    stock, eager = (type(model).from_pretrained(model.name_or_path, **how) for model in (stock, grouped))
    inputs = inputs_of(family)
    expected = weights_of(stock, inputs, output_attentions=True)
    assert expected
    same(weights_of(eager, inputs, output_attentions=True), expected)
    grouped.config._attn_implementation = "eager"
    same(weights_of(grouped, inputs, output_attentions=True), expected)


def same(found: dict[str, tuple[torch.Tensor, ...]], expected: dict[str, tuple[torch.Tensor, ...]]) -> None:
    """Of as many layers, up to rounding."""
    assert found.keys() == expected.keys()
    for name, layers in expected.items():
        assert len(found[name]) == len(layers)
        for one, other in zip(found[name], layers, strict=True):
            assert torch.allclose(one, other, atol=1e-5), name
