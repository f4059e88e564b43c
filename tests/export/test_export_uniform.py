"""Stock checkpoints out of grouped ones: any transformers loads them, and they compute the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import refused, succeeds
from huggingface_hub import ModelCard
from tiny_models import all_tensors, edit_json, logits
from transformers import AutoModelForCausalLM

Models = Callable[..., Path]


@pytest.mark.parametrize(
    ("family", "how"),
    [
        *(
            ("llama", "pad"),
            ("llama", "equalise"),
            ("mistral", "equalise"),
            ("qwen2", "pad"),
            ("qwen3", "pad"),
        ),
        *(("phi3", "pad"), ("mixtral", "pad")),
    ],
)
def test_the_model_computes_the_same(grouped: Models, family: str, how: str) -> None:
    source = grouped(family)
    succeeds("export", source, "--to", "uniform", "--how", how, "--allow-full-cache", "-o", "out")
    assert not list(Path("out").glob("*.py"))
    AutoModelForCausalLM.from_pretrained("out")  # a stock class, or the next line would be the grouped one's
    config = json.loads(Path("out/config.json").read_text())
    assert not {"gqakit", "auto_map", "per_layer_config"} & config.keys()
    assert config["num_key_value_heads"] == (5 if how == "pad" else 9)
    torch.testing.assert_close(logits(Path("out")), logits(source), rtol=0, atol=2e-5)


def test_padding_keeps_the_cache_where_layers_have_the_same_number_of_heads(grouped: Models) -> None:
    source = grouped("qwen2", "same_count")
    ran = json.loads(succeeds("export", source, "--to", "uniform", "-o", "out", "--json").out)
    assert ran["how"] == "pad"
    assert ran["kv_bytes_per_token"] == ran["kv_bytes_per_token_before"]
    assert set(ran["kv_heads"]) == {3}
    assert set(ran["query_heads"]) == {15}  # three groups of at most five
    config = json.loads(Path("out/config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (15, 3)
    written = sum(tensor.numel() for tensor in all_tensors(Path("out")).values())
    biases = 4 * (15 - 9) * 8
    assert written == ran["parameters"] + biases
    torch.testing.assert_close(logits(Path("out")), logits(source), rtol=0, atol=2e-5)


def test_a_llama_whose_heads_do_not_divide_its_width_becomes_a_mistral(grouped: Models) -> None:
    ran = json.loads(
        succeeds("export", grouped("llama", "same_count"), "--to", "uniform", "-o", "out", "--json").out
    )
    assert ran["kind"] == "mistral"
    assert any("mistral without sliding window" in note for note in ran["notes"])
    config = json.loads(Path("out/config.json").read_text())
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["sliding_window"] is None
    torch.testing.assert_close(logits(Path("out")), logits(grouped("llama", "same_count")), rtol=0, atol=2e-5)


def test_keys_and_values_apart_become_the_common_refinement(grouped: Models) -> None:
    source = grouped("llama", "apart")
    ran = succeeds(
        "export", source, "--to", "uniform", "--how", "equalise", "--allow-full-cache", "-o", "out"
    ).out
    assert "common refinement" in ran
    torch.testing.assert_close(logits(Path("out")), logits(source), rtol=0, atol=2e-5)


def test_giving_back_all_that_was_saved_is_refused(grouped: Models, tmp_path: Path) -> None:
    # Nine KV heads of eight channels in each of four layers, in float32: 2 * 9 * 8 * 4 * 4 bytes.
    to = ("--to", "uniform", "-o", "out")
    says = ("9 KV heads", "2,304 bytes", "base model had 9", "caches 704", "--allow-full-cache")
    said = refused(2, "export", grouped(), *to, "--how", "equalise", says=says)
    assert "leave out --how" in said
    assert "engines that run it so (transformers, llama.cpp, vllm, onnx)" in said
    only = refused(2, "export", grouped("mixtral"), *to, "--how", "equalise")
    assert "engines that run it so (transformers, vllm)" in only
    ran = json.loads(
        succeeds("export", grouped(), *to, "--json").out
    )  # five heads of nine still save something
    assert ran["kv_bytes_per_token"] < 2304
    source = Path(shutil.copytree(grouped(), tmp_path / "planless"))
    (source / "gqakit-plan.json").unlink()
    refused(
        2, "export", source, *to, "--how", "equalise", "--overwrite", says=("9 query heads are the most",)
    )
    plan = json.loads((grouped() / "gqakit-plan.json").read_text())
    plan["source"]["num_kv_heads"] = 5  # as if the base model had shared its nine query heads' keys already
    for layer in plan["layers"]:
        layer["key"] = layer["value"] = list(range(5))
    (source / "gqakit-plan.json").write_text(json.dumps(plan))
    said = refused(
        2, "export", source, *to, "--overwrite", says=("5 KV heads", "base model had 5", "1,280 bytes")
    )
    assert "leave out" not in said
    succeeds("export", source, *to, "--overwrite", "--allow-full-cache")


CARD = """---
base_model: {base}
license: other
license_name: some-licence
---
# A card
"""


@pytest.mark.parametrize(
    ("card", "planned", "base"),
    [
        (CARD.format(base="org/name"), "name", "org/name"),
        (CARD.format(base="name"), "org/name", "org/name"),
        (CARD.format(base="[org/one, org/two]"), "name", ["org/one", "org/two"]),
        (None, "name", "name"),
        ("---\nlicense: [\n---\n", "name", "name"),
    ],
)
def test_the_card_keeps_base_model_and_licence(
    grouped: Models, tmp_path: Path, card: str | None, planned: str, base: str | list[str]
) -> None:
    source = Path(shutil.copytree(grouped(), tmp_path / "source"))
    (source / "README.md").unlink()
    if card is not None:
        (source / "README.md").write_text(card)
    plan = json.loads((source / "gqakit-plan.json").read_text())
    plan["source"]["name"] = planned
    (source / "gqakit-plan.json").write_text(json.dumps(plan))
    succeeds("export", source, "--to", "uniform", "-o", "out", "-q")
    made = ModelCard.load(Path("out/README.md"))
    assert made.data["base_model"] == base
    known = card is not None and "some-licence" in card
    assert (made.data["license"], made.data["license_name"]) == (
        ("other", "some-licence") if known else (None, None)
    )
    assert "# source, uniform" in made.text


def test_what_cannot_be(grouped: Models, model: Models) -> None:
    refused(2, "export", model(), "--to", "uniform", "-o", "out", says=("already",))
    refused(2, "export", grouped(), "--to", "uniform", "--dtype", "f16", "-o", "out", says=("--dtype",))
    Path("there").mkdir()
    Path("there/config.json").write_text("{}")
    refused(7, "export", grouped(), "--to", "uniform", "-o", "there", says=("not empty", "--overwrite"))
    succeeds("export", grouped(), "--to", "uniform", "-o", "there", "--overwrite")


def test_a_biased_llama_is_equalised_where_it_cannot_be_a_mistral(grouped: Models, tmp_path: Path) -> None:
    source = Path(shutil.copytree(grouped("llama", "same_count", attention_bias=True), tmp_path / "biased"))
    refused(4, "export", source, "--to", "uniform", "--how", "pad", "-o", "out", says=("attention_bias",))
    full = ("--allow-full-cache", "-o", "out", "--json")
    ran = json.loads(succeeds("export", source, "--to", "uniform", *full).out)
    assert (ran["kind"], ran["how"]) == ("llama", "equalise")
    edit_json(source / "config.json", gqakit={"format_version": 9, "layers": []})
    refused(4, "export", source, "--to", "uniform", "-o", "out2", says=("gqakit",))
