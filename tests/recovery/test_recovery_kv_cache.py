"""Repair and uptraining with keys and values rounded in the loop: weights adapt to fewer bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import refused, succeeds

from gqakit.evaluation.evaluate import evaluate

TEXT = ("--window", "32")


def divergence(source: Path, converted: str, types: str) -> float:
    rows = evaluate(source, converted, kv_cache=types, tokens=256, window=32, progress=False)
    return rows[-1].scores.kl


@pytest.fixture
def source(model) -> Path:
    return model("llama", kv_heads=4)


def test_repair_fits_what_is_behind_rounded_keys_and_values(source):
    succeeds("convert", source, "-o", "out", "--kv-ratio", "0.5", *TEXT, "--tokens", "256", "--no-evaluate")
    said = ("repair", "out", "--source", source, *TEXT, "--tokens", "512", "--steps", "12", "--no-evaluate")
    succeeds(*said, "-o", "plain")
    succeeds(*said, "-o", "rounded", "--kv-cache", "int2/4")
    plain, rounded = (
        json.loads(Path(name, "gqakit-repair.json").read_text()) for name in ("plain", "rounded")
    )
    assert rounded["kv_cache"] == "int2/4"
    assert "kv_cache" not in plain
    # What is fitted is the stream behind keys and values that were rounded, in every layer.
    assert rounded["layers"][0]["error_before"] > plain["layers"][0]["error_before"]
    assert all(
        layer["error_after"] < layer["error_before"] for layer in rounded["layers"] if layer["repaired"]
    )
    assert any(layer["repaired"] for layer in rounded["layers"])
    refused(2, *said, "-o", "x", "--kv-cache", "q4_0", says=("a head has 4",))


def test_uptraining_reads_rounded_keys_and_values(source):
    said = (
        "uptrain",
        source,
        "--teacher",
        source,
        *TEXT,
        "--tokens",
        "512",
        "--max-steps",
        "12",
        "--held-out",
        "4",
    )
    said = (*said, "--learning-rate", "2e-3", "--warmup-steps", "1")
    succeeds(*said, "-o", "trained", "--kv-cache", "int2/4", "-q")
    before, after = divergence(source, str(source), "int2/4"), divergence(source, "trained", "int2/4")
    assert after < before  # learning from itself, a student whose cache does not round has nothing to learn
    refused(2, *said, "-o", "x", "--kv-cache", "q4", says=("unknown cache type",))
