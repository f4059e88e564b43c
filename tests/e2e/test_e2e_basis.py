"""Budgets in heads and types of the cache: a source prepared without loss, both spent together, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import QUICK, SMALL, refused, succeeds
from family_models import STACKS, VARIANTS, build_family, output_of
from safetensors.torch import load_file
from tiny_models import edit_tensors, prompt_ids

import gqakit
from gqakit.checkpoint import Checkpoint
from gqakit.models.families import FAMILIES
from gqakit.models.load import load
from gqakit.models.source import Source
from gqakit.planning.make import plan
from gqakit.planning.plan import Plan

Models = Callable[..., Path]
WIDE = {"kv_heads": 4, "hidden_size": 256}  # 8 query heads of width 32: one block of q4_0


def logits(path: Path | str) -> torch.Tensor:
    with torch.inference_mode():
        return load(path, dtype=torch.float32)(input_ids=prompt_ids(24)).logits


def plan_of(out: str) -> Plan:
    return Plan.load(Path(out, "gqakit-plan.json"))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_source_is_prepared_without_loss(model: Models, family: str) -> None:
    source = model(family, **WIDE)
    said = succeeds("convert", source, "-o", "out", "--kv-ratio", "1", "--kv-cache", "q4_0", *QUICK).out
    assert (logits("out") - logits(source)).square().sum() < 1e-9 * logits(source).square().sum()
    theirs, ours = (load_file(Path(path, "model.safetensors")) for path in (source, "out"))
    moved = {name.split(".")[-2] for name in theirs if not torch.equal(theirs[name], ours[name])}
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj"}
    config = [json.loads(Path(path, "config.json").read_text()) for path in (source, "out")]
    assert config[0] == config[1]  # every engine loads it as the source
    plan = plan_of("out")
    assert plan.budget.kv_ratio == 4.5 / 16
    assert plan.cache is not None
    assert plan.cache.serve == "-ctk q4_0 -ctv q4_0 -fa on"
    for text in (said, Path("out/README.md").read_text()):
        assert plan.cache.serve in " ".join(text.split())
        assert "no heads are merged" in " ".join(text.split())
    assert "FAIL" not in succeeds("verify", source, "out", "--window", "32").out
    rows = json.loads(succeeds("evaluate", source, "out", *SMALL, "--kv-cache", "q4_0", "--json", "-q").out)
    plain, prepared = (row["scores"]["kl"] for row in rows["checkpoints"][1:])
    assert prepared < plain


ALWAYS = {"gpt_oss", "whisper", "bloom"}
CACHED = [name for name, (kind, *_) in VARIANTS.items() if any(s.cached for s in FAMILIES[kind].stacks)]


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v in ALWAYS else pytest.mark.matrix) for v in CACHED]
)
def test_every_family_is_prepared_without_loss(variant: str, tmp_path: Path) -> None:
    """Sinks, biases, fused projections, decoders behind encoders: all that is beside the maps comes along."""
    source = build_family(tmp_path / "model", variant)
    how = {"method": "neighbour", "merge": "mean", "format": "grouped", "stacks": STACKS.get(variant, ())}
    types = "int4/8" if Source.open(source, STACKS.get(variant, ())).spec.head_dim % 8 == 0 else "int4/4"
    made = plan(source, kv_ratio=1.0, kv_cache=types, progress=False, **how)
    gqakit.convert(source, tmp_path / "out", plan=made, progress=False, evaluate=False)
    theirs, ours = output_of(source, variant), output_of(tmp_path / "out", variant)
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    moved = [name for name in before.tensors if not torch.equal(before.load(name), after.load(name))]
    assert moved


def test_a_type_that_hardly_rounds_changes_no_weight(model: Models) -> None:
    source = model("llama", **WIDE)
    succeeds("convert", source, "-o", "out", "--kv-ratio", "0.6", "--kv-cache", "q8_0", *QUICK)
    theirs, ours = (load_file(Path(path, "model.safetensors")) for path in (source, "out"))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_keys_with_large_biases_are_prepared_for_eight_bits_too(copy: Models) -> None:
    source = copy("qwen2", **WIDE)

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("k_proj.bias"):
                tensor.view(-1, 2, 16)[:, :, 3] += 40.0  # one pair of every head

    edit_tensors(source, enlarge)
    succeeds("convert", source, "-o", "out", "--kv-ratio", "1", "--kv-cache", "q8_0", *QUICK)
    theirs, ours = (load_file(Path(path, "model.safetensors")) for path in (source, "out"))
    moved = {name.split(".")[-2] for name in theirs if not torch.equal(theirs[name], ours[name])}
    assert moved == {"q_proj", "k_proj"}
    rows = json.loads(succeeds("evaluate", source, "out", *SMALL, "--kv-cache", "q8_0", "--json", "-q").out)
    plain, prepared = (row["scores"]["kl"] for row in rows["checkpoints"][1:])
    assert prepared < 0.3 * plain


@pytest.mark.parametrize(("types", "bits"), [("q8_0,q4_0", (8.5, 4.5))])
def test_heads_and_types_share_one_budget(model: Models, types: str, bits: tuple[float, float]) -> None:
    source = model("llama", **WIDE)
    said = ("convert", source, "-o", "out", "--kv-ratio", "0.2", "--kv-cache", types, "--kv-maps", "separate")
    succeeds(*said, "--layer-loss", "error", *QUICK)
    plan = plan_of("out")
    keys, values = (sum(getattr(g, side).num_groups for g in plan.groupings) for side in ("key", "value"))
    reached = (keys * bits[0] + values * bits[1]) / (16 * 2 * 16)  # of 4 layers with 4 heads each
    assert plan.budget.kv_ratio == pytest.approx(reached)
    assert 0.17 < reached <= 0.2
    assert (keys, values) != (16, 16)
    row = json.loads(succeeds("evaluate", source, "out", *SMALL, "--kv-cache", types, "--json", "-q").out)
    assert row["checkpoints"][-1]["kv_ratio"] == pytest.approx(reached, rel=1e-6)


def test_the_best_types_and_heads_are_chosen_for_an_engine(model: Models) -> None:
    source = model("llama", **WIDE)
    auto = ("convert", source, "--kv-cache", "auto", "--for", "llama.cpp", *QUICK, "--measure-tokens", "32")
    succeeds(*auto, "-o", "half", "--kv-ratio", "0.55")
    half = plan_of("half")
    assert half.cache is not None
    assert half.cache.types == "q8_0"  # the finest that fits, as merging random heads costs far more
    assert all(grouping.is_identity for grouping in half.groupings)
    succeeds(*auto, "-o", "tenth", "--kv-ratio", "0.15")
    tenth = plan_of("tenth")
    assert tenth.cache is not None
    assert tenth.cache.types in ("q4_0", "iq4_nl")
    assert tenth.budget.kv_ratio <= 0.15
    said = refused(5, *auto, "-o", "none", "--kv-ratio", "0.05", says=("cannot be met", "0.0703"))
    assert "36 bytes" not in said


def test_sixteen_bits_are_what_was_before(model: Models) -> None:
    source = model("llama", **WIDE)
    said = ("convert", source, "--kv-ratio", "0.5", "--layer-loss", "error", *QUICK)
    succeeds(*said, "-o", "one")
    succeeds(*said, "-o", "two", "--kv-cache", "f16")
    assert (
        Path("one/gqakit-plan.json").read_text().replace("one.", "two.")
        == Path("two/gqakit-plan.json").read_text()
    )
    assert '"cache"' not in Path("one/gqakit-plan.json").read_text()


def test_what_cannot_be_spent_is_refused(model: Models) -> None:
    source, narrow = model("llama", **WIDE), model("llama", kv_heads=4)
    run = ("convert", source, "-o", "x", "--kv-ratio", "0.3", *QUICK)
    refused(2, *run, "--kv-cache", "auto", says=("--kv-cache auto", "--for"))
    refused(2, *run, "--kv-cache", "q4_0", "--for", "vllm", says=("vllm has no cache of type q4_0", "fp8"))
    refused(2, *run, "--kv-cache", "fp8,f16", "--for", "vllm", says=("one type for keys and values",))
    refused(2, *run, "--kv-cache", "q9_0", says=("unknown cache type 'q9_0'",))
    refused(
        2,
        "convert",
        narrow,
        "-o",
        "x",
        "--kv-ratio",
        "0.3",
        *QUICK,
        "--kv-cache",
        "q4_0",
        says=("a head has 4",),
    )
    heads = (
        "convert",
        source,
        "-o",
        "x",
        "--kv-heads",
        "2",
        "--kv-cache",
        "auto",
        "--for",
        "llama.cpp",
        *QUICK,
    )
    refused(2, *heads, says=("spends bytes",))
    refused(
        5, "convert", source, "-o", "x", "--kv-ratio", "0.05", "--kv-cache", "q4_0", *QUICK, says=("0.0703",)
    )
