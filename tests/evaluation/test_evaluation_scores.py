"""Scores against their definitions, and the cache as it is."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import LlamaForCausalLM

from gqakit.evaluation.cache import measure_cache
from gqakit.evaluation.language import score_language
from gqakit.models.source import Source

WINDOWS = torch.randint(0, 64, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tiny_llama) -> tuple[nn.Module, nn.Module]:
    return tuple(LlamaForCausalLM.from_pretrained(tiny_llama(8, seed=seed)).eval() for seed in (0, 1))


def test_perplexity_is_the_exponential_of_the_cross_entropy(models):
    told = []
    scores = score_language(models[0], WINDOWS, progress=told.append)
    with torch.no_grad():
        logits = models[0](input_ids=WINDOWS).logits[:, :-1].double()
    direct = cross_entropy(logits.flatten(0, 1), WINDOWS[:, 1:].flatten())
    assert scores.perplexity == pytest.approx(math.exp(direct), rel=1e-5)
    assert (scores.kl, scores.top1, scores.tokens) == (0.0, 1.0, 27)
    assert told == [10, 10, 10]


def test_divergence_from_another_model(models):
    scores = score_language(models[1], WINDOWS, models[0])
    with torch.no_grad():
        source, model = (m(input_ids=WINDOWS).logits[:, :-1].double().flatten(0, 1) for m in models)
    direct = kl_div(model.log_softmax(-1), source.log_softmax(-1), log_target=True, reduction="batchmean")
    assert scores.kl == pytest.approx(float(direct), rel=1e-4)
    assert scores.kl > 0.01
    assert scores.top1 == pytest.approx(float((source.argmax(-1) == model.argmax(-1)).double().mean()))
    assert scores.top1 < 1
    backwards = score_language(models[0], WINDOWS, models[1])
    assert backwards.kl != pytest.approx(scores.kl, rel=1e-3)  # the direction matters


def test_a_model_does_not_diverge_from_itself(models):
    scores = score_language(models[0], WINDOWS, models[0])
    assert scores.kl == pytest.approx(0.0, abs=1e-6)
    assert scores.top1 == 1.0
    assert scores.perplexity == score_language(models[0], WINDOWS).perplexity


class Certain(nn.Module):
    """Always sure of token 5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, 8)
        logits[..., 5] = 1e4
        return type("Out", (), {"logits": logits})


def test_hopeless_models_have_infinite_perplexity():
    assert score_language(Certain(), torch.full((1, 4), 3)).perplexity == math.inf
    assert score_language(Certain(), torch.full((1, 4), 5)).perplexity == pytest.approx(1.0)


@pytest.mark.parametrize("kv_heads", [8, 4, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_is_as_large_as_computed(tiny_llama, kv_heads, dtype):
    path = tiny_llama(kv_heads)
    spec = Source.open(path).spec
    model = LlamaForCausalLM.from_pretrained(path, dtype=dtype).eval()
    expected = spec.cache.bytes_per_token * dtype.itemsize / 4
    assert expected == 4 * 2 * kv_heads * 4 * dtype.itemsize
    for length in (5, 16):
        assert measure_cache(model, spec, {"input_ids": torch.arange(length)[None]}) == expected
