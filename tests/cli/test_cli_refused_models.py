"""Checkpoints that cannot be converted: each is refused with its own message, and nothing is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from command import SMALL, refused, succeeds
from tiny_fixtures import Models
from tiny_models import edit_json, edit_tensors

from gqakit.models.families import FAMILIES

CONVERT = ("-o", "out", "--kv-heads", 2, *SMALL)


def convert(code: int, source: Path, *says: str) -> str:
    """`gqakit convert` and `inspect` refuse a source."""
    return refused(code, "convert", source, *CONVERT, says=says)


def test_no_such_directory() -> None:
    convert(3, Path("./no/such/model"), "no/such/model", "no such directory")


def test_a_file(copy: Models) -> None:
    convert(3, copy() / "model.safetensors", "is not a directory")


def test_an_empty_directory() -> None:
    Path("empty").mkdir()
    convert(3, Path("empty"), "no config.json and no weights", "nothing")


def test_no_config(copy: Models) -> None:
    source = copy()
    (source / "config.json").unlink()
    convert(3, source, "has weights but no config.json")


@pytest.mark.parametrize("text", ["{", "[]", "", "\xff"])
def test_a_config_that_is_no_json_object(copy: Models, text: str) -> None:
    source = copy()
    (source / "config.json").write_text(text, encoding="latin-1")
    convert(3, source, "config.json")


def test_a_config_that_disagrees_with_the_tensors(copy: Models) -> None:
    source = copy()
    edit_json(source / "config.json", num_hidden_layers=6, num_key_value_heads=4)
    message = convert(4, source, "disagree", "model.layers.0.self_attn.k_proj.weight is [32, 32]", "[16, 32]")
    assert message.endswith(" more")  # all at once, the first few spelt out


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size", "num_hidden_layers"])
def test_a_config_without_a_number_that_is_needed(copy: Models, key: str) -> None:
    source = copy()
    edit_json(source / "config.json", **{key: None})
    convert(4, source, "config and tensors of this llama disagree")  # transformers' default is another number


def test_truncated_weights(copy: Models) -> None:
    source = copy()
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    convert(3, source, "model.safetensors")


def test_a_corrupt_header(copy: Models) -> None:
    source = copy()
    path = source / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"?" + data[9:])
    convert(3, source, "model.safetensors", "header")


def test_a_missing_shard(copy: Models) -> None:
    source = copy(sharded=True)
    gone = sorted(source.glob("*.safetensors"))[2]
    gone.unlink()
    convert(3, source, gone.name)


@pytest.mark.parametrize(
    ("projection", "value"),
    [("q_proj", math.nan), ("k_proj", math.inf), ("v_proj", math.nan), ("o_proj", -math.inf)],
)
def test_an_attention_weight_that_is_not_finite(copy: Models, projection: str, value: float) -> None:
    source = copy()
    name = f"model.layers.2.self_attn.{projection}.weight"
    edit_tensors(source, lambda tensors: tensors[name].view(-1)[5].fill_(value))
    convert(3, source, name)
    refused(3, "plan", source, "--kv-heads", 2, "-o", "plan.json", says=(name,))
    refused(3, "calibrate", source, "-o", "m.safetensors", *SMALL, says=(name,))


def test_another_weight_that_is_not_finite_is_found_by_the_calibration(copy: Models) -> None:
    source = copy()
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(source, lambda tensors: tensors[name].fill_(float("nan")))
    convert(9, source, "layer 2", "not finite")


def test_a_quantised_model(copy: Models) -> None:
    source = copy()
    edit_json(source / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    convert(3, source, "quantised", "gptq", "the model that it was quantised from")


def test_pickled_weights_only(copy: Models) -> None:
    source = copy()
    (source / "model.safetensors").unlink()
    torch.save({}, source / "pytorch_model.bin")
    convert(3, source, "pickled", "pytorch_model.bin", "save_pretrained")


def test_gguf_only(copy: Models) -> None:
    source = copy()
    (source / "model.safetensors").rename(source / "model-Q4_0.gguf")
    convert(3, source, "GGUF", "model-Q4_0.gguf", "gguf_file")


def test_no_weights(copy: Models) -> None:
    source = copy()
    (source / "model.safetensors").unlink()
    convert(3, source, "no weights")


def test_an_unknown_family_is_told_where_the_known_stand_and_what_was_seen(copy: Models) -> None:
    source = copy()
    edit_json(source / "config.json", model_type="newcomer", architectures=["NewcomerForCausalLM"])
    message = convert(4, source, "'newcomer'", "NewcomerForCausalLM", "39 tensors")
    assert f"`gqakit families` lists the {len(FAMILIES)} that are" in message
    assert "self_attn" in message


def test_no_model_type(copy: Models) -> None:
    source = copy()
    edit_json(source / "config.json", model_type=None)
    convert(4, source, "config.json has no model_type")


def test_no_tokenizer(copy: Models) -> None:
    source = copy()
    for path in source.glob("tokenizer*"):
        path.unlink()
    convert(3, source, "tokenizer")
    refused(3, "generate", source, "Hello", says=("tokenizer",))
    refused(3, "evaluate", source, *SMALL, says=("tokenizer",))
    succeeds("plan", source, "--kv-heads", 2, "-o", "plan.json", "--method", "neighbour")
    succeeds("convert", source, "-o", "out", "--plan", "plan.json")  # no text, no tokenizer needed


def test_a_checkpoint_that_is_grouped_already(model: Models, moments: Models) -> None:
    source = model("llama", kv_heads=4)
    succeeds("convert", source, "-o", "grouped", "--kv-heads", 3, "--statistics", moments(source))
    grouped = Path("grouped")
    for command in (("convert", grouped, "-o", "out"), ("plan", grouped, "-o", "plan.json")):
        refused(2, *command, "--kv-ratio", 0.5, says=("already a grouped checkpoint", "made of"))
    refused(2, "calibrate", grouped, "-o", "m.safetensors", says=("already a grouped checkpoint",))
    reach = json.loads(succeeds("inspect", grouped, "--json").out)
    assert not any(entry["reachable"] for entry in reach["formats"])
    assert reach["key_heads"] == [3, 3, 3, 3]
