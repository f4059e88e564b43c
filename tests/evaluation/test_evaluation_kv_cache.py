"""Models whose cache rounds: rounded where attention reads, in stock and grouped models alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from gqakit.core.cache_types import CachePair, CacheType, cache_pair
from gqakit.errors import UsageError
from gqakit.models.attention_hook import watched_attention
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.source import Source

IDS = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(0))


class Shifted(CacheType):
    """Gives back something else than it was given, so that what reads it shows."""

    name = "shifted"

    def __init__(self, by: float) -> None:
        self.by = by

    def nbytes(self, head_dim: int) -> float:
        return head_dim

    def stored(self, states):
        return states.float() + self.by


@pytest.fixture(scope="module")
def stock(tiny_llama):
    path = tiny_llama(4)
    return LlamaForCausalLM.from_pretrained(path).eval(), Source.open(path).spec


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_looking_changes_nothing(stock):
    model, spec = stock
    before, seen = logits(model), []

    def look(call):
        seen.append(call.key.shape)
        return call.key, call.value

    with watched_attention(model, {spec.attention_module(model, layer): look for layer in (0, 2)}):
        assert torch.equal(logits(model), before)
    assert seen == [(1, 4, 24, 4)] * 2
    assert torch.equal(logits(model), before)
    assert len(seen) == 2  # and no longer


def test_keys_are_rounded_after_rope_and_values_as_they_are(stock):
    model, spec = stock
    kept = {}

    def look(call):
        kept["call"] = call
        return call.key, call.value

    with watched_attention(model, {spec.attention_module(model, 3): look}), torch.inference_mode():
        cache = model(input_ids=IDS, use_cache=True).past_key_values.layers[3]
    assert torch.equal(kept["call"].key, cache.keys)  # what a cache holds
    assert torch.equal(kept["call"].value, cache.values)


def test_a_constant_on_every_value_moves_the_output_and_one_on_every_key_cancels(stock):
    model, spec = stock
    plain = logits(model)
    for by, moves in (((0.0, 0.0), False), ((1.0, 0.0), False), ((0.0, 1.0), True)):  # keys, values
        with rounded_cache(model, spec, CachePair(*map(Shifted, by))):
            assert ((logits(model) - plain).abs().max() > 1e-2) == moves
    with rounded_cache(model, spec, CachePair(Shifted(0.0), Shifted(1.0)), layers=()):
        assert torch.equal(logits(model), plain)


def test_two_models_are_rounded_apart(stock, tiny_llama):
    model, spec = stock
    other = LlamaForCausalLM.from_pretrained(tiny_llama(4)).eval()
    plain = logits(other)
    with rounded_cache(model, spec, cache_pair("int2/4")):
        assert torch.equal(logits(other), plain)
        with rounded_cache(other, spec, cache_pair("int3/4")):
            three = logits(other)
            assert not torch.equal(three, logits(model))
        assert torch.equal(logits(other), plain)
        assert not torch.equal(logits(model), plain)


def test_decoding_from_a_cache_reads_what_one_pass_reads(stock):
    model, spec = stock
    with rounded_cache(model, spec, cache_pair("int3/4")), torch.inference_mode():
        whole, cache = logits(model)[0], None
        for position in range(IDS.shape[1]):
            made = model(input_ids=IDS[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            torch.testing.assert_close(made.logits[0, -1], whole[position], rtol=1e-3, atol=1e-4)


def test_types_are_checked_for_the_model(stock):
    spec = stock[1]
    assert check_cache_types(None, spec) is None
    with pytest.raises(UsageError, match="q8_0 rounds blocks of 32 channels, and a head has 4"):
        check_cache_types("q8_0,q4_0", spec)
    with pytest.raises(UsageError, match="unknown cache type 'q3'"):
        check_cache_types("q3", spec)
