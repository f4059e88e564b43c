"""What lies in an output besides the merged heads: everything else of the source, and where it came from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from command import QUICK, SMALL, succeeds
from safetensors import safe_open
from tiny_fixtures import Models
from tiny_models import all_tensors, hashes

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)
ATTENTION = re.compile(r"\.(q|k|v|o)_proj\.")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize(
    ("target", "dtype", "sharded"),
    [
        ("uniform", torch.bfloat16, True),
        ("uniform", torch.float32, False),
        ("grouped", torch.float32, True),
        ("grouped", torch.bfloat16, False),
    ],
    ids=str,
)
def test_everything_but_the_attention_is_the_sources_and_the_source_is_left_alone(
    model: Models, dtype: torch.dtype, sharded: bool, target: str
) -> None:
    source = model("qwen2", kv_heads=4, dtype=dtype, sharded=sharded)
    before = hashes(source)
    how = ("--kv-heads", 2, "--format", target, "--method", "neighbour")
    succeeds("convert", source, "-o", "out", *how, *SMALL, "--evaluate")
    succeeds("verify", source, "out")
    assert hashes(source) == before

    out = Path("out")
    old, new = all_tensors(source), all_tensors(out)
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert new[name].dtype == tensor.dtype == dtype
        if not ATTENTION.search(name):
            assert torch.equal(bits(new[name]), bits(tensor)), name
    assert {name for name in old if old[name].shape != new[name].shape} == {
        f"model.layers.{layer}.self_attn.{p}_proj.{part}"
        for layer in range(4)
        for p in "kv"
        for part in ("weight", "bias")
    }
    for name in SIDE_FILES:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file, safe_open(source / path.name, "pt") as original:
            assert file.metadata() == original.metadata()
            assert list(file.keys()) == list(original.keys())
    assert not [path.name for path in out.iterdir() if path.name.startswith(".") or "partial" in path.name]


def test_a_head_that_stays_alone_is_carried_over_bit_for_bit(model: Models) -> None:
    source = model("llama", kv_heads=4)
    succeeds("convert", source, "-o", "out", "--kv-heads", 3, *QUICK)
    plan = json.loads((Path("out") / "gqakit-plan.json").read_text())
    old, new = all_tensors(source), all_tensors(Path("out"))
    for index, layer in enumerate(plan["layers"]):
        alone = [head for head, group in enumerate(layer["key"]) if layer["key"].count(group) == 1]
        assert len(alone) == 2
        for name in ("k_proj", "v_proj"):
            key = f"model.layers.{index}.self_attn.{name}.weight"
            heads, merged = old[key].unflatten(0, (4, -1)), new[key].unflatten(0, (3, -1))
            for head in alone:
                assert torch.equal(merged[layer["key"][head]], heads[head])


def test_the_card_says_what_was_made_of_what_and_what_it_cost(model: Models) -> None:
    source = model("llama", kv_heads=4)
    ran = succeeds("convert", source, "-o", "out", "--kv-heads", 2, *SMALL, "--evaluate", "--json")
    card = (Path("out") / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "base_model: llama" in front
    assert "license: apache-2.0" in front
    assert "Licence: apache-2.0 (inherited from the base model)" in body
    for part in ("4 KV heads in each of 4 layers", "to 2 KV heads per layer", "512 → 256 bytes"):
        assert part in body
    for part in ("`optimal`", "`fold` for keys", "seed 0", "256 tokens", "gqakit-plan.json", "No training"):
        assert part in body
    source_row, row = json.loads(ran.out)["evaluation"]
    assert "predicted tokens in windows of 32" in body
    assert f"| out | 256 | 256 | 0.500 | {row['scores']['perplexity']:.4g} |" in body
    assert f"| llama | 512 | 512 | 1.000 | {source_row['scores']['perplexity']:.4g} |" in body


def test_the_card_without_a_measurement_says_so(model: Models) -> None:
    succeeds("convert", model("llama", kv_heads=4), "-o", "out", "--kv-heads", 3, *QUICK)
    card = (Path("out") / "README.md").read_text()
    assert "Not measured. `gqakit evaluate` does it." in card
    assert "| layer | KV heads (K, V) | key error | value error |" in card
    assert "trust_remote_code=True" in card


def test_a_dry_run_decides_and_writes_no_checkpoint(model: Models) -> None:
    ran = succeeds("convert", model("llama", kv_heads=4), "-o", "out", "--kv-heads", 2, *QUICK, "--dry-run")
    assert "Would convert" in ran.out
    assert "nothing (dry run)" in ran.out
    assert not Path("out").exists()


def test_overwrite_replaces_a_checkpoint_and_leaves_other_files(model: Models, moments: Models) -> None:
    source = model("llama", kv_heads=4)
    how = ("--statistics", moments(source))
    succeeds("convert", source, "-o", "out", "--kv-heads", 3, *how)
    assert list(Path("out").glob("*.py"))
    (Path("out") / "notes.pdf").write_text("mine")
    succeeds("convert", source, "-o", "out", "--kv-heads", 2, "--format", "uniform", *how, "--overwrite")
    succeeds("convert", source, "-o", "fresh", "--kv-heads", 2, "--format", "uniform", *how)
    assert (Path("out") / "notes.pdf").read_text() == "mine"
    (Path("out") / "notes.pdf").unlink()
    assert hashes(Path("out")) == hashes(Path("fresh"))
