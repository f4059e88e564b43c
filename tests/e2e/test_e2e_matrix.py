"""Families, formats, merge rules, methods: what `convert` writes, `verify` passes and everything loads.

Pairwise: every rule in every family (biases, normalised keys and head widths are what a rule sees of a family), every rule
and every family in both formats, every method once.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import QUICK, SMALL, succeeds
from tiny_fixtures import Models
from tiny_models import FAMILIES, prompt_ids
from transformers import AutoModelForCausalLM, PreTrainedModel

import gqakit
from gqakit.core.merging import RULES
from gqakit.grouping_methods import METHODS
from gqakit.planning.plan import Plan

NEW_TOKENS = 6


def loads_and_generates(source: Path, out: Path) -> None:
    """A converted checkpoint loads in both ways, keeps the planned cache, and generates what it predicts."""
    plan = Plan.load(out / "gqakit-plan.json")
    loaded = gqakit.load(out, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(plain) is type(loaded)
    config = json.loads((out / "config.json").read_text())
    if plan.format == "uniform":
        was = json.loads((source / "config.json").read_text())
        assert config == {**was, "num_key_value_heads": plan.groupings[0].key.num_groups}
        assert type(loaded).__module__.startswith("transformers.models.")
        assert not list(out.glob("*.py"))
    else:
        assert config["model_type"] == f"gqakit_{plan.source.model_type}"
    _cache_holds_the_groups(loaded, plan)
    _generates_the_argmax(loaded)


@torch.inference_mode()
def _cache_holds_the_groups(loaded: PreTrainedModel, plan: Plan) -> None:
    cache = loaded(input_ids=prompt_ids(8), use_cache=True).past_key_values
    assert len(cache.layers) == len(plan.groupings)
    for layer, grouping in zip(cache.layers, plan.groupings, strict=True):
        assert layer.keys.shape == (1, grouping.key.num_groups, 8, plan.source.head_dim)
        assert layer.values.shape == (1, grouping.value.num_groups, 8, plan.source.head_dim)


@torch.inference_mode()
def _generates_the_argmax(loaded: PreTrainedModel) -> None:
    ids = prompt_ids(8)
    loaded.generation_config.eos_token_id = None
    generated = loaded.generate(  # pyright: ignore[reportCallIssue]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    for _ in range(NEW_TOKENS):
        best = loaded(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    assert generated.tolist() == ids.tolist()


IN_FORMATS = [
    (family, merge, ("uniform", "grouped")[(i + j) % 2])
    for i, family in enumerate(FAMILIES)
    for j, merge in enumerate(RULES)
]


def test_the_pairs_hold_every_rule_and_family_in_both_formats() -> None:
    for place, names in ((0, FAMILIES), (1, RULES)):
        assert {(case[place], case[2]) for case in IN_FORMATS} == {
            (name, target) for name in names for target in ("uniform", "grouped")
        }


@pytest.mark.parametrize(("family", "merge", "target"), IN_FORMATS)
def test_every_merge_rule_in_every_family_and_format(
    model: Models, moments: Models, family: str, target: str, merge: str
) -> None:
    source = model(family)
    heads, method = {"uniform": (2, "neighbour"), "grouped": (3, "random")}[target]
    how = ("--method", method, "--merge", merge, "--format", target, "--kv-heads", heads)
    succeeds("convert", source, "-o", "out", *how, "--statistics", moments(source))
    succeeds("verify", source, "out")
    loads_and_generates(source, Path("out"))


@pytest.mark.parametrize(
    ("family", "method"), [(list(FAMILIES)[i % len(FAMILIES)], method) for i, method in enumerate(METHODS)]
)
def test_every_method_in_some_family(model: Models, moments: Models, family: str, method: str) -> None:
    source = model(family, kv_heads=4)
    heads = 1 if method == "mqa" else 3
    how = ("--method", method, "--merge", "fold", "--kv-heads", heads)
    succeeds("convert", source, "-o", "out", *how, "--statistics", moments(source))
    succeeds("verify", source, "out")
    loads_and_generates(source, Path("out"))


@pytest.mark.parametrize(
    ("target", "dtype", "sharded"),
    [
        ("uniform", torch.float32, True),
        ("uniform", torch.bfloat16, False),
        ("grouped", torch.bfloat16, True),
        ("grouped", torch.float32, False),
    ],
    ids=str,
)
def test_every_precision_and_layout_through_the_whole_flow(
    model: Models, target: str, dtype: torch.dtype, sharded: bool
) -> None:
    source = model("qwen2", kv_heads=4, dtype=dtype, sharded=sharded)
    assert (len(list(source.glob("*.safetensors"))) > 1) is sharded
    succeeds("convert", source, "-o", "out", "--kv-ratio", 0.5, "--format", target, *QUICK)
    ran = succeeds("verify", source, "out", "--json")
    assert json.loads(ran.out)["passed"]
    loads_and_generates(source, Path("out"))
    assert sorted(p.name for p in Path("out").glob("*.safetensors")) == sorted(
        p.name for p in source.glob("*.safetensors")
    )


def test_the_steps_one_by_one_give_what_convert_gives(model: Models) -> None:
    source = model("llama", kv_heads=4)
    succeeds("calibrate", source, "-o", "m.safetensors", *SMALL)
    budget = ("--kv-ratio", 0.5, "--statistics", "m.safetensors")
    succeeds("plan", source, *budget, "-o", "plan.json")
    succeeds("convert", source, "-o", "steps", "--plan", "plan.json")
    succeeds("convert", source, "-o", "whole", *budget)
    for path in Path("whole").iterdir():
        assert path.read_bytes() == (Path("steps") / path.name).read_bytes(), path.name
    assert (Path("whole") / "gqakit-plan.json").read_bytes() == Path("plan.json").read_bytes()
