"""DeciLM-style checkpoints: MLX-LM computes what transformers does; what the form cannot say is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import refused, succeeds
from safetensors.torch import save_file
from tiny_models import all_tensors, edit_json, logits, prompt_ids

Models = Callable[..., Path]
WIDE = {"intermediate_size": 256}


@pytest.fixture(scope="module")
def exported(grouped: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nas") / "out"
    succeeds("export", grouped("llama", "equal_sizes", **WIDE), "--to", "nemotron-nas", "-o", out)
    return out


def mlx_logits(path: Path, *, cached: bool) -> np.ndarray:
    """Logits by MLX-LM of the prompt, `[positions, vocabulary]`; cached: the last 8 tokens come one by one."""
    pytest.importorskip("mlx.core", exc_type=ImportError)
    pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(path)
    ids = mx.array(prompt_ids().numpy())
    if not cached:
        return np.array(model(ids).astype(mx.float32))[0]
    cache, length = model.make_cache(), ids.shape[1] - 8
    parts = [model(ids[:, :length], cache=cache)]
    parts += [model(ids[:, i : i + 1], cache=cache) for i in range(length, ids.shape[1])]
    return np.array(mx.concatenate(parts, axis=1).astype(mx.float32))[0]


@pytest.mark.parametrize("cached", [False, True])
def test_mlx_computes_what_transformers_does(grouped: Models, exported: Path, cached: bool) -> None:
    expected = logits(grouped("llama", "equal_sizes", **WIDE)).numpy()
    np.testing.assert_allclose(mlx_logits(exported, cached=cached), expected, rtol=0, atol=2e-4)


def test_heads_in_another_order_are_noticed(grouped: Models, exported: Path, tmp_path: Path) -> None:
    """The control: with every query head in its neighbour's place, the same check fails."""
    wrong = tmp_path / "wrong"
    shutil.copytree(exported, wrong)
    tensors = all_tensors(exported)
    for name in tensors:
        if "q_proj" in name:
            tensors[name] = tensors[name].roll(8, 0)  # [heads · 8, width]
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        wrong / "model.safetensors",
        metadata={"format": "pt"},
    )
    expected = logits(grouped("llama", "equal_sizes", **WIDE)).numpy()
    assert np.abs(mlx_logits(wrong, cached=False) - expected).max() > 1e-2


def test_the_config_states_every_layer(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert [block["attention"]["n_heads_in_group"] for block in config["block_configs"]] == [3, 9, 1, 3]
    widths = {int(2 * block["ffn"]["ffn_mult"] * 72 / 3) for block in config["block_configs"]}
    assert {-(-width // 256) * 256 for width in widths} == {256}
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert not {"gqakit", "auto_map"} & config.keys()
    assert not list(exported.glob("*.py"))


def test_groups_of_several_sizes_cost_heads(grouped: Models) -> None:
    to = ("--to", "nemotron-nas", "-o", "out")
    ran = succeeds("export", grouped("llama", "unequal", **WIDE), *to, "--allow-full-cache", "--json")
    result = json.loads(ran.out)
    assert result["kv_bytes_per_token"] > result["kv_bytes_per_token_before"]
    assert any("written again" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("llama", {"intermediate_size": 48}, "feed-forward width of 48"),
        ("llama", {"head_dim": 16, **WIDE}, "heads of width 16"),
        ("qwen2", WIDE, "grouped qwen2"),
        ("llama", {"is_causal": False, **WIDE}, "is_causal = False"),
        ("mistral", {"sliding_window": 32, "hidden_size": 72, "head_dim": 8, **WIDE}, "sliding_window is 32"),
    ],
)
def test_what_the_form_cannot_say_is_refused(grouped: Models, family: str, options: dict, says: str) -> None:
    refused(
        4,
        "export",
        grouped(family, "equal_sizes", **options),
        "--to",
        "nemotron-nas",
        "-o",
        "out",
        says=(says,),
    )


def test_a_plan_for_it_has_groups_of_one_size(model: Models, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model(), source)
    edit_json(source / "config.json", intermediate_size=48)
    made = tmp_path / "plan.json"
    succeeds("plan", source, "--kv-ratio", 0.5, "--for", "mlx-lm", "--format", "grouped", "-o", made)
    layers = json.loads(made.read_text())["layers"]
    for layer in layers:
        sizes = {layer["key"].count(group) for group in layer["key"]}
        assert len(sizes) == 1
        assert layer["key"] == layer["value"]
    assert "grouped apart" in refused(
        2, "plan", source, "--kv-ratio", 0.5, "--for", "mlx-lm", "--kv-maps", "separate"
    )


def test_another_plan_is_refused_for_it(model: Models, tmp_path: Path) -> None:
    made = tmp_path / "plan.json"
    succeeds("plan", model(), "--kv-ratio", 0.4, "--format", "grouped", "-o", made)
    if all(
        len({k.count(g) for g in k}) == 1
        for k in (layer["key"] for layer in json.loads(made.read_text())["layers"])
    ):
        pytest.skip("the best groups happen to be equal")
    refused(2, "convert", model(), "--plan", made, "--for", "mlx-lm", "-o", "out", says=("one size",))
