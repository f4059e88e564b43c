"""gpt-oss: sinks go where their query heads go, and experts in MXFP4 are copied to the byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import build_family, edit_layers, inputs_of, output_of
from safetensors.torch import load_file, save_file

import gqakit
from gqakit.conversion.verify import verify
from gqakit.errors import CheckpointError
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.make import plan

PAIRS = torch.tensor([0, 1, 0, 1])  # KV heads 0 and 2 alike, 1 and 3 alike


def _far_twins(weights: Any, spec: Any) -> Any:
    return replace(weights, key=weights.key.select(PAIRS), value=weights.value.select(PAIRS))


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """A model whose equal KV heads are no neighbours."""
    source = build_family(tmp_path / "source", "gpt_oss")
    edit_layers(source, "gpt_oss", _far_twins)
    return source


def _merged(source: Path, out: Path, format: str) -> None:
    made = plan(source, kv_ratio=0.5, method="optimal", merge="mean", format=format, progress=False)
    convert(source, out, plan=made, progress=False)


@pytest.mark.parametrize("format", ["uniform", "grouped"])
def test_sinks_follow_their_query_heads(twins: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    _merged(twins, out, format)
    moved = Source.open(twins).layer(0).sinks, Source.open(out).layer(0).sinks
    expected = output_of(twins, "gpt_oss")
    near = 1e-4 * float(expected.abs().max())
    assert torch.allclose(output_of(out, "gpt_oss"), expected, atol=near)
    assert moved[0] is not None
    assert moved[1] is not None
    assert not torch.equal(*moved)
    assert torch.equal(moved[0].sort().values, moved[1].sort().values)
    tensors = load_file(out / "model.safetensors")  # left where they were, the same conversion is wrong
    tensors |= {
        name: tensor
        for name, tensor in load_file(twins / "model.safetensors").items()
        if name.endswith("sinks")
    }
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    assert not torch.allclose(output_of(out, "gpt_oss"), expected, atol=near)


def _in_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Give a checkpoint experts in MXFP4, of random codes: blocks of 32 values with a common exponent."""
    tensors = load_file(folder / "model.safetensors")
    rng = torch.Generator().manual_seed(3)
    codes: dict[str, torch.Tensor] = {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, rows = tensors.pop(name).shape  # stored [experts, rows, width / 32, 16 bytes]
        blocks = (experts, rows, width // 32, 16)
        codes[f"{name}_blocks"] = torch.randint(0, 256, blocks, generator=rng, dtype=torch.uint8)
        codes[f"{name}_scales"] = torch.randint(120, 124, blocks[:3], generator=rng, dtype=torch.uint8)
    save_file({**tensors, **codes}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return codes


def test_experts_in_mxfp4_are_copied_to_the_byte(twins: Path, tmp_path: Path) -> None:
    codes, out = _in_mxfp4(twins), tmp_path / "out"
    _merged(twins, out, "grouped")
    made = load_file(out / "model.safetensors")
    assert codes
    assert all(torch.equal(made[name], tensor) for name, tensor in codes.items())
    expected = output_of(twins, "gpt_oss")
    assert torch.allclose(output_of(out, "gpt_oss"), expected, atol=1e-3 * float(expected.abs().max()))
    batch = {name: tensor[:1] for name, tensor in inputs_of("gpt_oss").items()}
    assert verify(str(twins), str(out), batch={**batch, "use_cache": False}).passed


def test_other_codes_are_refused(twins: Path) -> None:
    tensors = load_file(twins / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight_blocks"] = torch.zeros(4, 4, dtype=torch.uint8)
    _in_mxfp4(twins)
    save_file(tensors, twins / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"stored quantised: .*q_proj.weight_blocks"):
        gqakit.inspect(twins)
