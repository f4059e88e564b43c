"""GGUF files run by llama.cpp: the tokens of transformers, and a cache as small as the heads say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import succeeds
from tiny_models import build, prompt_ids

import gqakit
from gqakit.exporters.source import ExportSource
from gqakit.models.head_layout import pad_layer

pytest.importorskip("xllamacpp")
from llama_cpp import CONTEXT, run

Models = Callable[..., Path]


@torch.inference_mode()
def check(source: Path) -> None:
    """Export, run, and compare every log-probability and the cache."""
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    model = gqakit.load(source, dtype=torch.float32)
    ids = prompt_ids(12)[0].tolist()
    got = run(Path("x.gguf"), ids, 8, exact=True)
    known = list(ids)
    for token, logprobs in zip(got.tokens, got.logprobs, strict=True):
        expected = model(input_ids=torch.tensor([known])).logits[0, -1].log_softmax(-1)
        assert int(expected.argmax()) == token
        for index, value in logprobs.items():
            assert value == pytest.approx(expected[index].item(), abs=1e-4)
        known.append(token)
    opened = ExportSource.open(str(source))
    heads = sum(pad_layer(layer).num_kv_heads for layer in opened.heads)
    planned = 2 * heads * opened.spec.head_dim * 2 * CONTEXT / 2**20
    flash = run(Path("x.gguf"), ids, 8)
    assert flash.cache_mib == pytest.approx(planned, abs=0.006)  # the log has two decimals


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3"])
def test_grouped(grouped: Models, family: str) -> None:
    check(grouped(family))


def test_grouped_with_normalised_keys(grouped: Models) -> None:
    check(grouped("qwen3", tie_word_embeddings=True))


def test_keys_and_values_apart(grouped: Models) -> None:
    check(grouped("llama", "apart"))


def test_biases_everywhere(grouped: Models) -> None:
    check(grouped("llama", attention_bias=True))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_stock(family: str, tmp_path: Path) -> None:
    """Not in a folder named phi3: of models of that name llama.cpp expects tokens that this one does not have."""
    check(build(tmp_path / "stock", family, kv_heads=4, hidden_size=64))


def test_scaled_rotary_embedding(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    check(build(tmp_path / "scaled", kv_heads=4, hidden_size=64, rope_parameters=scaling))
