"""Types of the cache as llama.cpp has them against ours: the same text, the same log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import succeeds
from tiny_models import prompt_ids

import gqakit
from gqakit.core.cache_types import cache_pair
from gqakit.models.rounding import rounded_cache
from gqakit.models.source import Source

pytest.importorskip("xllamacpp")
from llama_cpp_logits import log_probs

Models = Callable[..., Path]
WIDE = {
    "kv_heads": 4,
    "hidden_size": 512,
    "num_hidden_layers": 2,
}  # 8 query heads of 64 channels: llama.cpp rotates
IDS = prompt_ids(40)


def ours(path: Path, types: str | None) -> torch.Tensor:
    model, spec = gqakit.load(path, dtype=torch.float32), Source.open(path).spec
    with torch.inference_mode(), rounded_cache(model, spec, types and cache_pair(types)):
        return model(input_ids=IDS).logits[0].log_softmax(-1)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL from one to the other, in nats."""
    return float((one.exp() * (one - other)).sum(-1).mean())


# Qwen2's keys lie in the cache as they do here; Llama's are interleaved there, so only a rotation makes them alike.
@pytest.mark.parametrize(
    ("family", "rotate", "types"),
    [
        ("qwen2", False, "q8_0,q4_0"),
        ("qwen2", False, "q4_1"),
        ("qwen2", True, "q4_0"),
        ("llama", True, "q8_0,q5_0"),
    ],
)
def test_a_stock_file(model: Models, family: str, rotate: bool, types: str) -> None:
    check(model(family, **WIDE), rotate, types)


def test_a_grouped_file(model: Models) -> None:
    said = ("--kv-ratio", "0.6", "--kv-maps", "shared", "--format", "grouped", "--no-evaluate")
    succeeds("convert", model("qwen2", **WIDE), "-o", "out", *said, "--tokens", "256", "--window", "32")
    check(Path("out"), True, "q4_0")


def check(source: Path, rotate: bool, types: str) -> None:
    """Our rounded model is far nearer to llama.cpp in these types than either is to 16 bits or to another type."""
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    exact = log_probs(Path("x.gguf"), IDS[0].tolist())
    torch.testing.assert_close(exact, ours(source, None), rtol=1e-3, atol=1e-3)
    key, _, value = types.partition(",")
    theirs = log_probs(Path("x.gguf"), IDS[0].tolist(), key, value or key, rotate=rotate)
    named = ",".join(f"{name}{'+h' if rotate else ''}" for name in types.split(","))
    lost = distance(exact, theirs)
    assert 0.6 < distance(exact, ours(source, named)) / lost < 1.6
    if (
        Source.open(source).spec.model_type != "qwen2"
    ):  # interleaved there: errors of the same size, not the same
        return
    assert distance(theirs, ours(source, named)) < 0.25 * lost
    other = named.replace("+h", "") if rotate else f"{named}+h"
    assert distance(theirs, ours(source, other)) > distance(theirs, ours(source, named))
