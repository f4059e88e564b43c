"""`--kv-cache` on the command line: stock and grouped models, decoders behind encoders, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import QUICK, SMALL, refused, succeeds
from family_models import build_family
from tiny_models import prompt_ids, tokenizer
from transformers import DynamicCache, QuantizedCache

from gqakit.core.cache_types import cache_pair
from gqakit.models.load import load

Models = Callable[..., Path]


def rows(*arguments: object) -> list[dict]:
    return json.loads(succeeds("evaluate", *arguments, *SMALL, "--json", "-q").out)["checkpoints"]


def test_a_source_and_what_was_made_of_it(model: Models) -> None:
    source = model("llama", kv_heads=4)
    succeeds("convert", source, "-o", "out", "--kv-ratio", "0.5", "--kv-maps", "separate", *QUICK)
    plain = rows(source, "out")
    found = rows(source, "out", "--kv-cache", "int3/4,int4/4")
    assert [row["kv_cache"] for row in found] == [None, "int3/4,int4/4", "int3/4,int4/4"]
    reference, rounded, grouped = found
    assert reference["scores"] == plain[0]["scores"]
    assert rounded["scores"]["kl"] > 1e-5
    assert grouped["scores"]["kl"] != plain[1]["scores"]["kl"]
    # 3 and 4 bits for a channel, and a scale of 16 for every 4: 7 and 8 of 16 bits.
    assert reference["kv_ratio"] == 1
    assert rounded["kv_ratio"] == (7 + 8) / 32
    for row in found:
        assert abs(row["kv_bytes_measured"] - row["kv_bytes_per_token"]) <= 0.5  # stated in whole bytes
    assert rows(source, "--kv-cache", "f16")[1]["scores"]["kl"] < 1e-6


@pytest.mark.parametrize("types", ["quanto4/32", "fp8_per_tensor"])
def test_transformers_own_quantised_cache_holds_what_is_measured(model: Models, types: str) -> None:
    source = model("llama", kv_heads=4, hidden_size=256)
    said = succeeds(
        "convert",
        source,
        "-o",
        "out",
        "--kv-ratio",
        "0.2",
        "--kv-maps",
        "separate",
        "--kv-cache",
        types,
        *QUICK,
    )
    serve = next(line for line in said.out.splitlines() if "cache_implementation" in line)
    how = json.loads(serve[serve.index("{") : serve.rindex("}") + 1])
    if how["backend"] == "quanto":
        pytest.importorskip("optimum.quanto")
    grouped = load("out", dtype=torch.float32).eval()
    plain, held = DynamicCache(config=grouped.config), QuantizedCache(config=grouped.config, **how)
    with torch.inference_mode():
        for cache in (plain, held):
            grouped(input_ids=prompt_ids(24), past_key_values=cache)
    for ours, theirs in zip(plain.layers, held.layers, strict=True):
        key, value = cache_pair(types).stored(ours.keys, ours.values)
        assert torch.equal(key, theirs._dequantize(theirs._quantized_keys))
        assert torch.equal(value, theirs._dequantize(theirs._quantized_values))
    made = grouped.generate(
        prompt_ids(24), max_new_tokens=4, do_sample=False, cache_implementation="quantized", cache_config=how
    )
    assert made.shape[-1] == 28


def test_a_decoder_behind_an_encoder_caches_both_its_attentions() -> None:
    folder = build_family(Path("t5"), "t5")
    tokenizer().save_pretrained(folder)
    plain, rounded = rows(folder, "--kv-cache", "int2/4")
    assert rounded["scores"]["kl"] > plain["scores"]["kl"] == 0


def test_losses_of_single_layers_in_a_cache_that_rounds(model: Models, moments: Models) -> None:
    source = model("llama", kv_heads=4)
    said = (
        "correlate",
        source,
        "--statistics",
        moments(source),
        "--layers",
        "3",
        "--random",
        "3",
        "--kv-heads",
        "2",
    )
    few = ("--window", "32", "--measure-tokens", "64", "--json", "-q")
    plain, rounded = (
        json.loads(succeeds(*said, *few, *more).out)["samples"] for more in ((), ("--kv-cache", "int2/4"))
    )
    assert [sample["labels"] for sample in plain] == [sample["labels"] for sample in rounded]
    assert all(coarse["loss"] > fine["loss"] for fine, coarse in zip(plain, rounded, strict=True))


def test_what_cannot_be_held_is_refused(model: Models) -> None:
    source = model("llama", kv_heads=4)
    refused(
        2,
        "evaluate",
        source,
        *SMALL,
        "--kv-cache",
        "q4_0",
        says=("--kv-cache", "blocks of 32 channels", "fp8"),
    )
    refused(2, "evaluate", source, *SMALL, "--kv-cache", "q4", says=("unknown cache type 'q4'", "q4_0"))
    encoder = build_family(Path("bert"), "bert")
    tokenizer().save_pretrained(encoder)
    refused(2, "evaluate", encoder, *SMALL, "--kv-cache", "f16", says=("keeps no keys and values",))
