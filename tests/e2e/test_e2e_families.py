"""Every family: what must hold exactly for a converted checkpoint, on a small random model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import succeeds
from family_models import (
    FAMILIES,
    HEADS,
    STACKS,
    VARIANTS,
    build_family,
    edit_layers,
    in_matrix,
    inputs_of,
    output_of,
    padded_inputs_of,
    run,
)
from safetensors.torch import load_file
from transformers import GenerationConfig

import gqakit
import gqakit.errors
from gqakit.conversion.verify import verify
from gqakit.core.attention import AttentionWeights
from gqakit.core.rope import Channels
from gqakit.models.inspection import inspect
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.make import plan

CACHED = [
    name
    for name, (family, _) in VARIANTS.items()
    if any(stack.cached for stack in FAMILIES[family].stacks)
    and name != "paligemma"  # sees its whole prompt in both directions, so a prompt in parts is another
]
DECODERS = [name for name, (family, _) in VARIANTS.items() if FAMILIES[family].task == "text"]


@pytest.fixture(scope="module", params=in_matrix(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """A family, or one of the shapes that a family comes in."""
    return request.param


_built: dict[str, Path] = {}


@pytest.fixture
def source(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its random checkpoint, built once."""
    if variant not in _built:
        _built[variant] = build_family(tmp_path_factory.mktemp("families") / variant, variant)
    return _built[variant]


def converted(source: Path, variant: str, out: str, ratio: float = 0.5, **options: Any) -> Path:
    """A conversion from weights alone, verified."""
    options = {"method": "neighbour", "merge": "mean", "format": "grouped", **options}
    made = plan(source, kv_ratio=ratio, stacks=STACKS.get(variant, ()), progress=False, **options)
    convert(source, out, plan=made, progress=False)
    return Path(out)


def test_identity_changes_nothing(source: Path, variant: str) -> None:
    """Every weight keeps its bits, wherever a fused tensor has it; only the order of sums may differ at run time."""
    out = converted(source, variant, "out", 1.0)
    stacks = STACKS.get(variant, ())
    before, after = Source.open(source, stacks), Source.open(out)
    assert after.spec.is_grouped
    attention = set()
    for layer in range(before.spec.num_layers):
        one, other = before.layer(layer), after.layer(layer)
        for role in ("query", "key", "value"):
            assert torch.equal(getattr(one, role).augmented(), getattr(other, role).augmented())
            attention.add(before.spec.tensor(layer, role))
        assert torch.equal(one.output, other.output)
    old, new = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert old.keys() == new.keys()
    fused = {name.rsplit(".", 1)[0] for name in attention}
    for name in old:
        if name.rsplit(".", 1)[0] not in fused:
            assert torch.equal(old[name], new[name]), name
    assert torch.allclose(output_of(out, variant), output_of(source, variant), atol=2e-5)


def test_fold_with_as_many_heads_as_the_source_is_exact(source: Path, variant: str) -> None:
    out = converted(source, variant, "out", 1.0, merge="fold", method="optimal")
    assert torch.allclose(output_of(out, variant), output_of(source, variant), atol=2e-5)


def _duplicated(weights: AttentionWeights, spec: Any) -> AttentionWeights:
    """Every second KV head made equal to the one before it."""
    heads = torch.arange(weights.num_kv_heads) // 2 * 2
    return replace(weights, key=weights.key.select(heads), value=weights.value.select(heads))


def test_merging_duplicates_by_mean_is_exact(variant: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "twins", variant)
    edit_layers(source, variant, _duplicated)
    out = converted(source, variant, "out")
    for inputs in (inputs_of(variant), padded_inputs_of(variant)):
        expected, seen = (run(gqakit.load(folder, dtype=torch.float32), inputs) for folder in (source, out))
        assert torch.allclose(seen, expected, atol=1e-4 * float(expected.abs().max()))


def _turned(weights: AttentionWeights, spec: Any) -> AttentionWeights:
    """Duplicates, each then turned by what its query heads undo: orthogonal maps of values, and of keys where they mix."""
    from gqakit.core.attention import Projection

    twins = _duplicated(weights, spec)
    rng = torch.Generator().manual_seed(1)
    turns = [
        torch.linalg.qr(torch.randn(spec.head_dim, spec.head_dim, generator=rng))[0] for _ in range(HEADS)
    ]
    per_head = weights.num_heads // weights.num_kv_heads

    def turn(projection: Projection, by: list[torch.Tensor]) -> Projection:
        rows = projection.augmented()
        new = torch.stack([turn @ row for turn, row in zip(by, rows, strict=True)])
        return Projection.from_augmented(new, projection.bias is not None, projection.gain)

    reading = [turns[head // per_head] for head in range(weights.num_heads)]
    value = turn(twins.value, turns[: weights.num_kv_heads])
    output = torch.stack([out @ by.T for out, by in zip(twins.output, reading, strict=True)])
    query, key = twins.query, twins.key
    if not spec.channels.locked and (twins.query.bias is None) == (twins.key.bias is None):
        turns = [_key_turn(spec.channels, rng) for _ in turns]
        reading = [turns[head // per_head] for head in range(weights.num_heads)]
        query, key = turn(query, reading), turn(key, turns[: weights.num_kv_heads])
    return replace(weights, query=query, key=key, value=value, output=output)


def _key_turn(channels: Channels, rng: torch.Generator) -> torch.Tensor:
    """A random turn that commutes with the positions: by an angle in each frequency pair, any in the free channels."""
    turn = torch.eye(channels.head_dim)
    first, second, free = channels.indices
    angles = torch.rand(len(first), generator=rng) * 6.28
    turn[first, first] = turn[second, second] = angles.cos()
    turn[first, second], turn[second, first] = -angles.sin(), angles.sin()
    if len(free):
        mixed = torch.linalg.qr(torch.randn(len(free), len(free), generator=rng))[0]
        turn[free[:, None], free] = mixed
    return turn


def test_turning_heads_into_one_frame_loses_nothing(variant: str, tmp_path: Path) -> None:
    """By the two rules that turn, in turn: what a rule sees of a family is in the tests of the core."""
    merge = ("aligned", "fold")[list(VARIANTS).index(variant) % 2]
    plain, turned = (build_family(tmp_path / name, variant) for name in ("plain", "turned"))
    edit_layers(plain, variant, _duplicated)
    edit_layers(turned, variant, _turned)
    expected = output_of(plain, variant)
    near = 1e-3 * float(expected.abs().max())
    assert torch.allclose(output_of(turned, variant), expected, atol=near)
    out = converted(turned, variant, "out", merge=merge)
    assert torch.allclose(output_of(out, variant), expected, atol=near)


def test_verify_passes_and_a_copy_saved_again_is_the_same(source: Path, variant: str) -> None:
    """With separate maps, which hold all that shared ones have; the cache has both below."""
    maps = "separate"
    out = converted(source, variant, "out", 0.6, method="random", merge="fold", kv_maps=maps)
    found = verify(str(source), str(out), **_on(variant))
    assert found.passed, [check for check in found.checks if not check.passed]
    model = gqakit.load(out, dtype=torch.float32)
    model.save_pretrained("again")
    assert torch.equal(output_of(Path("again"), variant), output_of(out, variant))


def _on(variant: str) -> dict[str, Any]:
    """Random checkpoints have no tokenizer; what they are verified on is given as batches."""
    batch = {name: tensor[:1] for name, tensor in inputs_of(variant).items()}
    if variant in CACHED:
        batch["use_cache"] = False
    return {"batch": batch}


@pytest.mark.parametrize("maps", ["shared", "separate"])
@pytest.mark.parametrize("variant", in_matrix(CACHED))
def test_cached_steps_equal_one_pass(source: Path, variant: str, maps: str) -> None:
    task = FAMILIES[VARIANTS[variant][0]].task
    out = converted(source, variant, "out", 0.6, method="random", merge="mean", kv_maps=maps)
    model: Any = gqakit.load(out, dtype=torch.float32)
    inputs = inputs_of(variant)
    name = "input_ids" if task == "text" else "decoder_input_ids"
    whole = run(model, inputs, use_cache=False)
    ids, cache, steps = inputs[name], None, []
    with torch.inference_mode():
        for start, end in ((0, 12), (12, 13), (13, 14), (14, 20)):
            made = model(**{**inputs, name: ids[:, start:end]}, past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            steps.append(made.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("variant", in_matrix(DECODERS))
def test_generation_by_beams_and_padding(variant: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", variant)
    model: Any = gqakit.load(converted(source, variant, "out", method="random"), dtype=torch.float32)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=None)
    ids = inputs_of(variant)["input_ids"][:, :8]
    padded = torch.cat([torch.zeros(2, 3, dtype=ids.dtype), ids], dim=1)
    mask = (torch.arange(11) >= 3).long().expand(2, -1)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    left = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert plain[:, 8:].tolist() == left[:, 11:].tolist()
    beams = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, num_beams=3, do_sample=False
    )
    assert beams.shape == (2, 13)


def test_uniform_is_reached_exactly_where_it_is_claimed(source: Path, variant: str) -> None:
    formats = inspect(source, stacks=STACKS.get(variant, ())).formats
    claimed = {reach.format: reach.reachable for reach in formats}
    assert claimed["grouped"]
    if not claimed["uniform"]:
        with pytest.raises(gqakit.errors.BudgetError, match="no stock code runs fewer"):
            converted(source, variant, "out", format="uniform")
        return
    out = converted(source, variant, "out", format="uniform")
    model = gqakit.load(out, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers.models.")
    assert verify(str(source), str(out), **_on(variant)).passed


def test_the_page_shows_the_table() -> None:
    begin, end = "<!-- table: made by gqakit families --markdown -->\n\n", "\n<!-- end of table -->"
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    assert page.split(begin)[1].split(end)[0] == succeeds("families", "--markdown").out
    assert json.loads(succeeds("families", "--json").out)[0]["family"] == "llama"
