"""Generation with grouped models: greedy, padded batches, beams, sampling, static cache."""

import pytest
import torch
from runtime_models import DIFFERING, FAMILIES, MAPS, SAME, pair, tokens

from gqakit.models.remote_code import attention

PADDED = torch.tensor([[0] * 4 + [1] * 7, [1] * 11])
MODES = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
}


def generate(model, ids, **options):
    torch.manual_seed(5)
    return model.generate(ids, max_new_tokens=10, **options)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, "greedy") for family in FAMILIES), ("llama", "beams"), ("qwen3", "sampling")],
)
def test_padded_batch_generates_what_the_stock_model_generates(family, maps, mode):
    grouped, stock = pair(family, MAPS[maps])
    ids = tokens() * PADDED
    options = {"attention_mask": PADDED, **MODES[mode]}
    out = generate(grouped, ids, **options)
    assert out.shape == (2, 21)
    assert torch.equal(out, generate(stock, ids, **options))


@pytest.mark.parametrize("maps", MAPS)
def test_cache_changes_nothing(maps):
    grouped, _ = pair("llama", MAPS[maps])
    ids = tokens(batch=1)
    mask = torch.ones_like(ids)
    cached, uncached = (generate(grouped, ids, attention_mask=mask, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_static_cache_with_other_counts_in_each_layer(family):
    grouped, stock = pair(family, SAME)
    ids = tokens() * PADDED
    options = {"attention_mask": PADDED, "do_sample": False}
    expected = generate(stock, ids, **options)
    assert torch.equal(generate(grouped, ids, cache_implementation="static", **options), expected)


def test_static_cache_refuses_layers_whose_keys_and_values_differ():
    grouped, _ = pair("llama", DIFFERING)
    with pytest.raises(ValueError, match=r"layer 0 has different numbers of key and value heads.*dynamic"):
        generate(
            grouped,
            tokens(),
            cache_implementation="static",
            attention_mask=torch.ones(2, 11, dtype=torch.long),
        )


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_generation_beyond_a_sliding_window(mode, cache):
    grouped, stock = pair("mistral", SAME, sliding_window=5)
    ids = tokens() * PADDED
    options = {"attention_mask": PADDED, "cache_implementation": cache, **MODES[mode]}
    assert torch.equal(generate(grouped, ids, **options), generate(stock, ids, **options))


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("added", [1, 3])
def test_generation_goes_on_from_a_filled_cache(maps, added):
    grouped, stock = pair("llama", MAPS[maps])
    first = grouped.generate(tokens(), max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, tokens(length=added, seed=4)], 1)
    mask = torch.ones_like(ids)
    went_on = generate(
        grouped, ids, attention_mask=mask, past_key_values=first.past_key_values, do_sample=False
    )
    assert torch.equal(went_on, generate(stock, ids, attention_mask=mask, do_sample=False))


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True], ids=["ragged", "compiled"])
def test_long_caches_generate_the_same(maps, dtype, compiled, monkeypatch):
    model = pair("qwen3", MAPS[maps])[0].to(dtype)
    options = {"attention_mask": PADDED, "do_sample": False, "output_logits": True}
    logits = []
    if not compiled:
        monkeypatch.setattr(attention, "compiled_kernels", lambda: None)
    for limit in (1 << 62, 0):
        monkeypatch.setattr(attention, "MANY_CACHED", limit)
        out = generate(model, tokens() * PADDED, return_dict_in_generate=True, **options)
        logits.append(out.logits[1].float())  # the first decoded token, the same input for both
    tolerance = 1e-4 if dtype == torch.float32 else 0.1 * logits[0].abs().max().item()
    torch.testing.assert_close(*logits, atol=tolerance, rtol=tolerance)
