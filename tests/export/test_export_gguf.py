"""GGUF files read back: every tensor and number against a computation written out here."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import gqakit, refused, succeeds
from export_fixtures import UNEQUAL
from tiny_models import all_tensors, edit_json

from gqakit.core.grouping import Grouping, Partition
from gqakit.errors import UsageError
from gqakit.exporters.gguf_model import llama3_divisors
from gqakit.exporters.gguf_tensors import interleave
from gqakit.exporters.options import ExportOptions

gguf = pytest.importorskip("gguf")
Models = Callable[..., Path]
D = 8


def read(path: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors (as float32, outermost axis first)."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = np.asarray(values, np.float32).reshape(shape)
    return fields, tensors


def rotated(rows: np.ndarray) -> np.ndarray:
    """The rotary permutation, one channel at a time."""
    out = np.empty_like(rows)
    for head in range(len(rows) // D):
        for j in range(D // 2):
            out[head * D + 2 * j] = rows[head * D + j]
            out[head * D + 2 * j + 1] = rows[head * D + j + D // 2]
    return out


def head(matrix: np.ndarray, index: int) -> np.ndarray:
    return matrix[index * D : (index + 1) * D]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_grouped_layers_are_padded_and_permuted(grouped: Models, family: str) -> None:
    source = grouped(family)
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    fields, tensors = read("x.gguf")
    original = {name: value.numpy() for name, value in all_tensors(source).items()}
    assert fields["general.architecture"] == "deci"
    assert fields["deci.attention.head_count_kv"] == [3, 2, 5, 1]
    assert fields["deci.attention.head_count"] == [12, 12, 15, 9]
    for layer, (labels, _) in enumerate(UNEQUAL):
        # In the grouped checkpoint the query heads already lie group by group.
        map_, _ = Grouping.shared(Partition(labels)).query_maps(9)
        groups = [[q for q in range(9) if map_[q] == g] for g in range(max(map_) + 1)]
        size = max(map(len, groups))
        prefix = f"model.layers.{layer}.self_attn"
        for part in ("weight", "bias") if family == "qwen2" else ("weight",):
            q, k, v = (original[f"{prefix}.{p}_proj.{part}"] for p in "qkv")
            got = tensors[f"blk.{layer}.attn_q.{part}"]
            for g, members in enumerate(groups):
                for place in range(size):
                    member = members[place] if place < len(members) else members[0]
                    np.testing.assert_array_equal(head(got, g * size + place), rotated(head(q, member)))
            np.testing.assert_array_equal(tensors[f"blk.{layer}.attn_k.{part}"], rotated(k))
            np.testing.assert_array_equal(tensors[f"blk.{layer}.attn_v.{part}"], v)
        columns = head_columns(original[f"{prefix}.o_proj.weight"])
        got = head_columns(tensors[f"blk.{layer}.attn_output.weight"])
        for g, members in enumerate(groups):
            for place in range(size):
                expected = columns[members[place]] if place < len(members) else 0 * columns[0]
                np.testing.assert_array_equal(got[g * size + place], expected)
    others = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.2.ffn_down.weight": "model.layers.2.mlp.down_proj.weight",
        "blk.3.attn_norm.weight": "model.layers.3.input_layernorm.weight",
        "blk.3.ffn_norm.weight": "model.layers.3.post_attention_layernorm.weight",
    }
    for name, was in others.items():
        np.testing.assert_array_equal(tensors[name], original[was])


def head_columns(matrix: np.ndarray) -> np.ndarray:
    return matrix.reshape(len(matrix), -1, D).swapaxes(0, 1)


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")],
)
def test_stock_checkpoints_keep_their_family(model: Models, family: str, architecture: str) -> None:
    source = model(family, kv_heads=4)
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    fields, tensors = read("x.gguf")
    assert fields["general.architecture"] == architecture
    assert fields[f"{architecture}.attention.head_count"] == 8
    assert fields[f"{architecture}.attention.head_count_kv"] == 4
    original = all_tensors(source)
    key = original["model.layers.1.self_attn.k_proj.weight"].numpy()
    width = key.shape[0] // 4
    expected = interleave(torch.tensor(key), width).numpy() if architecture == "llama" else key
    np.testing.assert_array_equal(tensors["blk.1.attn_k.weight"], expected)
    assert sum(t.size for t in tensors.values()) == sum(t.numel() for t in original.values())


def test_numbers_and_tokenizer(model: Models) -> None:
    source = model("llama", kv_heads=4, tie_word_embeddings=True, rms_norm_eps=3e-6)
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    fields, tensors = read("x.gguf")
    assert "output.weight" not in tensors
    assert fields["llama.context_length"] == 256
    assert fields["llama.embedding_length"] == 32
    assert fields["llama.block_count"] == 4
    assert fields["llama.feed_forward_length"] == 48
    assert fields["llama.vocab_size"] == 128
    assert fields["llama.rope.dimension_count"] == 4
    assert fields["llama.rope.freq_base"] == 10000.0
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(3e-6)
    assert fields["general.name"] == "llama"
    data = json.loads((source / "tokenizer.json").read_text())
    tokens = fields["tokenizer.ggml.tokens"]
    assert {token: tokens.index(token) for token in data["model"]["vocab"]} == data["model"]["vocab"]
    assert len(tokens) == 128
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in data["model"]["merges"]]
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.bos_token_id"] == 1
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    assert "assistant" in fields["tokenizer.chat_template"]


def test_base_model_and_licence_are_written(grouped: Models, tmp_path: Path) -> None:
    source = Path(shutil.copytree(grouped(), tmp_path / "some-grouped"))
    (source / "README.md").write_text("---\nbase_model: Some-Org/some-1B-chat\nlicense: mit\n---\n")
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    fields, _ = read("x.gguf")
    assert fields["general.name"] == "some-grouped"
    assert fields["general.license"] == "mit"
    assert fields["general.base_model.count"] == 1
    assert fields["general.base_model.0.name"] == "Some 1B Chat"
    assert fields["general.base_model.0.organization"] == "Some Org"
    assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/Some-Org/some-1B-chat"


@pytest.mark.parametrize("dtype", ["float16", "bf16", "Q8_0", "Q4_0"])
def test_other_element_types(grouped: Models, dtype: str) -> None:
    option = {"Q8_0": "--quantise", "Q4_0": "--quantize"}.get(dtype, "--dtype")
    source = grouped("mistral", intermediate_size=64)
    succeeds("export", source, "--to", "gguf", option, dtype, "-o", "x.gguf")
    _, tensors = read("x.gguf")
    tolerance = {"float16": 1e-3, "bf16": 8e-3, "Q8_0": 2e-2, "Q4_0": 0.25}[dtype]
    for name, was in {
        "blk.0.ffn_up.weight": "mlp.up_proj",
        "blk.0.attn_norm.weight": "input_layernorm",
    }.items():
        expected = all_tensors(source)[f"model.layers.0.{was}.weight"].numpy()
        error = np.abs(tensors[name] - expected).max() / np.abs(expected).max()
        assert error <= (0 if "norm" in name else tolerance)
        assert "norm" in name or error > 0


def test_the_checkpoints_own_type_is_the_default(model: Models) -> None:
    source = model("llama", kv_heads=4, dtype=torch.bfloat16)
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader("x.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "BF16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_llama3_scaling_is_what_transformers_computes(copy: Models) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(plain / llama3_divisors(32, 500000.0, scaling), scaled)
    source = copy("llama", kv_heads=4)
    edit_json(source / "config.json", rope_parameters=scaling)
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    fields, tensors = read("x.gguf")
    assert fields["llama.rope.freq_base"] == 500000.0
    np.testing.assert_allclose(tensors["rope_freqs.weight"], llama3_divisors(4, 500000.0, scaling).numpy())


def test_a_window_caps_the_context(copy: Models) -> None:
    source = copy("mistral", kv_heads=4)
    edit_json(source / "config.json", sliding_window=100)
    assert "sliding window of 100" in succeeds("export", source, "--to", "gguf", "-o", "x.gguf").out
    assert read("x.gguf")[0]["llama.context_length"] == 100


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `llama-quantize` that copies its input, or fails for the type Q6_K."""
    path = tmp_path / "tools" / "llama-quantize"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        "sys.exit('no such type') if sys.argv[3] == 'Q6_K' else shutil.copy(*sys.argv[1:3])\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_the_tool_makes_k_quants(grouped: Models, tool: Path) -> None:
    ran = succeeds("export", grouped(), "--to", "gguf", "--quantise", "Q4_K_M", "-o", "out/x.gguf")
    assert "no multiple of 256" in ran.out
    assert [p.name for p in Path("out").iterdir()] == ["x.gguf"]
    refused(
        7,
        "export",
        grouped(),
        "--to",
        "gguf",
        "--quantise",
        "Q6_K",
        "-o",
        "out/y.gguf",
        says=("no such type",),
    )


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="Did you mean 'gguf'"):
        ExportOptions(to="ggml")
    with pytest.raises(UsageError, match=r"bf16.*; .*Q8_0"):
        ExportOptions(to="gguf", dtype="f8", quantise="Q9")
    ran = gqakit("export", "model", "--to", "ggml", "-o", "x")
    assert ran.code == 2
    assert "gguf" in ran.err


def test_what_cannot_be(grouped: Models, copy: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    to = ("--to", "gguf", "-o", "x.gguf")
    refused(4, "export", grouped("qwen3"), *to, says=("qwen3", "--to uniform", "--format uniform"))
    refused(2, "export", grouped(), *to, "--quantise", "Q8_0", "--dtype", "f16", says=("contradict",))
    refused(2, "export", grouped(), *to, "--how", "pad", says=("--how",))
    refused(10, "export", grouped(), *to, "--quantise", "Q4_K_M", says=("llama-quantize", "Q8_0"))
    refused(3, "export", "nowhere", *to, says=("nowhere",))
    Path("x.gguf").write_text("mine")
    refused(7, "export", grouped(), *to, says=("exists", "--overwrite"))
    succeeds("export", grouped(), *to, "--overwrite")
    Path("folder").mkdir()
    refused(7, "export", grouped(), "--to", "gguf", "-o", "folder", says=("directory",))
    source = copy("llama", kv_heads=4)
    refused(7, "export", source, "--to", "gguf", "-o", source / "x.gguf", says=("inside the source",))
    edit_json(source / "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})
    refused(4, "export", source, "--to", "gguf", "-o", "y.gguf", says=("yarn",))
    edit_json(source / "config.json", rope_parameters=None, hidden_act="gelu")
    refused(4, "export", source, "--to", "gguf", "-o", "y.gguf", says=("gelu",))
    edit_json(source / "config.json", hidden_act="silu", is_causal=False)
    refused(4, "export", source, "--to", "gguf", "-o", "y.gguf", says=("is_causal = False", "llama.cpp"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(10, "export", grouped(), "--to", "gguf", "-o", "y.gguf", says=("gqakit[gguf]",))


def test_an_interrupted_export_leaves_nothing(grouped: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gqakit.exporters.gguf_file.encode", stop)
    assert gqakit("export", grouped(), "--to", "gguf", "-o", "x.gguf").code == 130
    assert list(Path.cwd().iterdir()) == []
