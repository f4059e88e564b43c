"""Text models inside multimodal ones: what the matrix over all families does not see, as it shows them no image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import succeeds
from family_models import CONFIGS, build_family, edit_layers
from multimodal_models import multimodal_configs, with_image
from safetensors.torch import load_file
from test_e2e_families import _turned
from tiny_models import edit_json, tokenizer

import gqakit
from gqakit.evaluation.evaluate import evaluate
from gqakit.models.inspection import inspect
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.make import plan
from gqakit.recovery.repair.repair import repair

SEEING = list(multimodal_configs({}, {}))
SAMPLE = ("llava", "gemma3", "qwen2_vl", "qwen2_5_vl")
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def seeing(families: list[str] = SEEING) -> list[Any]:
    """Parameters for a test of each; by default those of the sample."""
    marks = {True: (pytest.mark.matrix, pytest.mark.sample), False: (pytest.mark.matrix,)}
    return [pytest.param(family, marks=marks[family in SAMPLE]) for family in families]


def grouped(source: Path, out: str, ratio: float = 0.5, **options: Any) -> Path:
    options = {"method": "neighbour", "merge": "mean", "format": "grouped", **options}
    convert(source, out, plan=plan(source, kv_ratio=ratio, progress=False, **options), progress=False)
    return Path(out)


@torch.inference_mode()
def logits(folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return gqakit.load(folder, dtype=torch.float32)(**inputs).logits


@pytest.mark.parametrize("family", seeing())
def test_an_image_is_seen_as_before_and_its_tower_keeps_its_bytes(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    stock: Any = gqakit.load(source, dtype=torch.float32)
    inputs = with_image(stock, family)
    same: Any = gqakit.load(grouped(source, "same", 1.0), dtype=torch.float32)
    half: Any = gqakit.load(
        grouped(source, "half", 0.6, method="random", kv_maps="separate"), dtype=torch.float32
    )
    assert type(half).__name__ == f"Gqakit{type(stock).__name__}"
    with torch.inference_mode():
        expected = stock(**inputs).logits
        assert torch.equal(same(**inputs).logits, expected)
        assert not torch.equal(half(**inputs).logits, expected)
        blind = {**inputs, "pixel_values": torch.ones_like(inputs["pixel_values"])}
        assert not torch.equal(half(**blind).logits, half(**inputs).logits)
    assert same.generate(**inputs, **GREEDY).tolist() == stock.generate(**inputs, **GREEDY).tolist()
    cached, whole = (half.generate(**inputs, **GREEDY, use_cache=use) for use in (True, False))
    assert cached.tolist() == whole.tolist()
    attention = {name for layer in range(2) for name in _attention(source, layer)}
    old, new = load_file(source / "model.safetensors"), load_file("half/model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - attention)


def _attention(folder: Path, layer: int) -> list[str]:
    spec = Source.open(folder).spec
    return [
        spec.tensor(layer, role, kind)
        for role in ("query", "key", "value", "output")
        for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize("family", seeing())
def test_turned_duplicates_fold_without_loss_beside_an_image(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    edit_layers(source, family, _turned)
    inputs = with_image(gqakit.load(source, dtype=torch.float32), family)
    expected = logits(source, inputs)
    near = 1e-3 * float(expected.abs().max())
    assert torch.allclose(logits(grouped(source, "out", merge="fold"), inputs), expected, atol=near)
    wrong = grouped(source, "wrong", merge="mean")  # heads in other frames
    assert not torch.allclose(logits(wrong, inputs), expected, atol=near)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl"])
def test_names_of_tensors_as_transformers_five_has_them(family: str, tmp_path: Path) -> None:
    old = build_family(tmp_path / "old", family)
    stock: Any = gqakit.load(old, dtype=torch.float32)
    new = tmp_path / "new"
    stock.save_pretrained(new, save_original_format=False)
    assert Source.open(old).spec.prefix != Source.open(new).spec.prefix == "model.language_model."
    inputs = with_image(stock, family)
    expected = logits(grouped(old, "from-old", method="random"), inputs)
    assert torch.equal(logits(grouped(new, "from-new", method="random"), inputs), expected)


def test_a_config_that_is_flat_or_says_little_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Qwen2-VL's on the hub keeps the text model's keys beside its own; LLaVA's leaves out what is Llama's default."""
    flat = build_family(tmp_path / "flat", "qwen2_vl")
    config = json.loads((flat / "config.json").read_text())
    text = config.pop("text_config")
    kept = {
        key: text[key]
        for key in CONFIGS["qwen2_vl"]["text_config"]
        if key not in ("bos_token_id", "eos_token_id")
    }
    kept["rope_scaling"] = {"type": "mrope", "mrope_section": kept.pop("rope_parameters")["mrope_section"]}
    (flat / "config.json").write_text(json.dumps({**config, **kept, "rope_theta": 1e4}))
    inputs = with_image(gqakit.load(flat, dtype=torch.float32), "qwen2_vl")
    for form in ("grouped", "uniform"):
        out = grouped(flat, form, format=form)
        assert inspect(out).key_heads == (4, 4)
        assert "text_config" not in json.loads((out / "config.json").read_text())
        assert logits(out, inputs).isfinite().all()
    assert torch.equal(logits(grouped(flat, "same", 1.0), inputs), logits(flat, inputs))

    sparse = build_family(tmp_path / "sparse", "llava")
    config = json.loads((sparse / "config.json").read_text())
    for key in ("num_key_value_heads", "head_dim", "model_type"):
        del config["text_config"][key]
    (sparse / "config.json").write_text(json.dumps(config))
    inputs = with_image(gqakit.load(sparse, dtype=torch.float32), "llava")
    assert logits(grouped(sparse, "less", method="random"), inputs).isfinite().all()


def test_a_text_model_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", "llava")
    config = json.loads((source / "config.json").read_text())
    edit_json(source / "config.json", text_config={**config["text_config"], "model_type": "mamba"})
    with pytest.raises(
        gqakit.errors.FamilyError, match=r"llava holds a text model 'mamba'\. Known in it: llama, "
    ):
        inspect(source)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_calibrated_on_text_then_repaired_and_measured(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    tokenizer().save_pretrained(source)
    budget = {"tokens": 512, "window": 64, "progress": False}
    convert(source, "out", kv_ratio=0.5, format="grouped", **budget)
    done = repair("out", "repaired", source=source, steps=20, **budget)
    assert all(layer.error_after <= layer.error_before for layer in done.layers)
    rows = evaluate(source, ["out", "repaired"], tokens=256, window=64, progress=False)
    assert [round(row.kv_ratio, 2) for row in rows] == [1, 0.5, 0.5]
    assert rows[2].kv_bytes_measured == rows[2].kv_bytes_per_token
    assert 0 < rows[2].scores.kl < rows[1].scores.kl
    assert "FAILED" not in succeeds("verify", str(source), "out").out
