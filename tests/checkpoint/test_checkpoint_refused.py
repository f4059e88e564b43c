"""Directories that are no readable checkpoint: each kind has its own message and its own way out."""

import json

import pytest
import torch
from checkpoint_builders import CONFIG, SHARDS, edit_index, sharded, single, tensors, write_config
from safetensors.torch import save_file

from gqakit.checkpoint import MANIFEST_NAME, Checkpoint
from gqakit.errors import CheckpointError


def refused(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(path)
    assert str(caught.value).rstrip().endswith((".", '"'))
    return str(caught.value)


def test_missing_directory(tmp_path):
    refused(tmp_path / "none", "no such directory")
    refused("./none/at/all", "no such directory")
    refused("/" + "x" * 5000, "no such directory")


def test_a_file(tmp_path):
    single(tmp_path)
    refused(tmp_path / "config.json", "is not a directory")


def test_empty_directory(tmp_path):
    refused(tmp_path, "no config.json and no weights.*holds nothing")


def test_weights_without_config(tmp_path):
    (single(tmp_path) / "config.json").unlink()
    refused(tmp_path, "has weights but no config.json")


def test_config_without_weights(tmp_path):
    write_config(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"")
    refused(tmp_path, "has a config.json but no weights")


@pytest.mark.parametrize("text", ["{", "", '{"a": 1', "\xff"])
def test_config_is_not_json(tmp_path, text):
    (single(tmp_path) / "config.json").write_text(text, encoding="latin-1")
    refused(tmp_path, "config.json: not valid JSON")


def test_config_is_not_an_object(tmp_path):
    (single(tmp_path) / "config.json").write_text("[]")
    refused(tmp_path, "config.json: holds a JSON list")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "pytorch_model-00001-of-2.bin"]
)
def test_pickled(tmp_path, name):
    write_config(tmp_path)
    (tmp_path / name).write_bytes(b"")
    assert "python -c" in refused(tmp_path, f"only pickled weights .{name}")


def test_gguf(tmp_path):
    (tmp_path / "model.Q4_K_M.gguf").write_bytes(b"GGUF")
    assert "gguf_file='model.Q4_K_M.gguf'" in refused(tmp_path, "as GGUF")
    refused(tmp_path / "model.Q4_K_M.gguf", "as GGUF")


def test_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file(tensors(), tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "PEFT adapter")


def test_shards_without_index(tmp_path):
    (sharded(tmp_path) / "model.safetensors.index.json").unlink()
    refused(tmp_path, "neither model.safetensors nor model.safetensors.index.json")


def test_unfinished_output(tmp_path):
    (single(tmp_path) / MANIFEST_NAME).write_text("{}")
    refused(tmp_path, "unfinished gqakit output")


POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1234567\n"
)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", SHARDS[1], "tokenizer.json", "merges.txt"]
)
def test_git_lfs_pointer(tmp_path, name):
    (sharded(tmp_path) / name).write_text(POINTER)
    message = refused(tmp_path, rf"{name}: is a Git LFS pointer of \d+ bytes, not the file of 1234567 bytes")
    assert "git lfs pull" in message
    assert "\n" not in message


def test_git_lfs_pointer_that_nobody_reads(tmp_path):
    (sharded(tmp_path) / "picture.png").write_text(POINTER)
    (tmp_path / "onnx.safetensors").write_text(POINTER)
    assert Checkpoint.open(tmp_path).tensors


def test_missing_shard(tmp_path):
    (sharded(tmp_path) / SHARDS[1]).unlink()
    refused(tmp_path, f"1 of 2 shards .* missing: {SHARDS[1]}")


def test_index_names_a_tensor_that_no_shard_holds(tmp_path):
    sharded(tmp_path)
    edit_index(tmp_path, lambda index: index["weight_map"].update(ghost=SHARDS[0]))
    refused(tmp_path, "does not hold them: ghost")


def test_shard_holds_a_tensor_that_the_index_lacks(tmp_path):
    sharded(tmp_path)
    edit_index(tmp_path, lambda index: index["weight_map"].pop("model.embed.weight"))
    refused(tmp_path, "not mapped to it: model.embed.weight")


def test_index_swaps_shards(tmp_path):
    """Both disagreements are told at once."""
    sharded(tmp_path)
    edit_index(tmp_path, lambda index: index["weight_map"].update({"model.embed.weight": SHARDS[1]}))
    refused(tmp_path, "does not hold them: model.embed.weight.*not mapped to it: model.embed.weight")


@pytest.mark.parametrize(
    "shard", ["../up.safetensors", "/abs.safetensors", "a\\b.safetensors", "x.bin", 3, None]
)
def test_index_points_elsewhere(tmp_path, shard):
    sharded(tmp_path)
    edit_index(tmp_path, lambda index: index["weight_map"].update(ghost=shard))
    refused(tmp_path, "'ghost' is mapped to .* in the same directory")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": "b"}, "metadata": 1}])
def test_malformed_index(tmp_path, index):
    (sharded(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, "index.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config .method gptq"),
        ({"quantization_config": {"load_in_8bit": True}}, "8-bit"),
        (
            {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
            r"text_config\.quantization_config",
        ),
    ],
)
def test_quantised_by_config(tmp_path, config, message):
    single(tmp_path, config={**CONFIG, **config})
    assert "then convert that" in refused(tmp_path, message) or "was quantised from" in refused(
        tmp_path, message
    )


@pytest.mark.parametrize(
    ("name", "dtype", "code"),
    [
        ("layer.weight", torch.int8, "I8"),
        ("layer.qweight", torch.int32, "I32"),
        ("experts.gate_blocks", torch.uint8, "U8"),
        ("layer.weight", torch.float8_e4m3fn, "F8_E4M3"),
        ("layer.anything", torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_quantised_by_dtype(tmp_path, name, dtype, code):
    write_config(tmp_path)
    save_file({name: torch.ones(2, 2).to(dtype)}, tmp_path / "model.safetensors")
    assert "was quantised from" in refused(tmp_path, rf"stored quantised: {name} \({code}\)")


def test_integer_buffers_are_ordinary(tmp_path):
    write_config(tmp_path, {**CONFIG, "quantization_config": None})
    buffers = {
        "position_ids": torch.arange(8).view(1, 8),
        "attn.bias": torch.ones(1, 1, 4, 4).to(torch.uint8),
    }
    save_file({**tensors(), **buffers}, tmp_path / "model.safetensors")
    assert Checkpoint.open(tmp_path).tensors["position_ids"].dtype == "I64"
