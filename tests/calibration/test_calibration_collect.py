"""Moments of a tiny model against what its own hidden states and attention weights give."""

import gc
import weakref

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from gqakit.calibration.collect import LEAST_SAMPLED, collect_statistics, sampled_positions
from gqakit.errors import DataError
from gqakit.models.source import Source

HEADS, LAYERS, WIDTH = 8, 4, 32


def load(path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(path).eval()


def windows_of(length: int) -> Tensor:
    return torch.randint(0, 64, (3, length), generator=torch.Generator().manual_seed(length))


def by_hand(path, windows: Tensor, kv_heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Input moment, value moment and distances of every layer, from the model's own attention weights."""
    model = LlamaForCausalLM.from_pretrained(path, attn_implementation="eager").eval().double()
    inputs: dict[int, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_hook(
            lambda module, args, out, index=index: inputs.__setitem__(index, out[0])
        )
    length = windows.shape[1]
    sums = [
        [torch.zeros(33, 33).double(), torch.zeros(33, 33).double(), torch.zeros(kv_heads, length).double()]
        for _ in range(LAYERS)
    ]
    rows = 0
    with torch.no_grad():
        for window in windows:
            attentions = model(input_ids=window[None], output_attentions=True, use_cache=False).attentions
            for layer in range(LAYERS):
                x = torch.cat([inputs[layer], torch.ones(length, 1).double()], 1)
                sums[layer][0] += x.T @ x
                for head in range(HEADS):
                    for position in sampled_positions(HEADS, length, WIDTH)[head].tolist():
                        share = attentions[layer][0, head, position]
                        delivered = share @ x
                        sums[layer][1] += torch.outer(delivered, delivered)
                        rows += layer == 0
                        for earlier in range(position + 1):
                            sums[layer][2][head * kv_heads // HEADS, position - earlier] += share[earlier]
    return [(a / windows.numel(), b / rows, c / c.sum(1, keepdim=True)) for a, b, c in sums]


@pytest.mark.parametrize(("kv_heads", "length"), [(8, 12), (4, 19), (4, 50), (2, 400)])
def test_moments_are_the_averages(tiny_llama, kv_heads, length):
    path = tiny_llama(kv_heads)
    spec = Source.open(path).spec
    windows = windows_of(length)
    found = collect_statistics(load(path), spec, windows)
    assert sorted(found) == list(range(LAYERS))
    for layer, (inputs, value, distances) in enumerate(by_hand(path, windows, kv_heads)):
        moments = found[layer]
        torch.testing.assert_close(moments.input, inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.value, value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.distances, distances, rtol=1e-4, atol=1e-5)
        assert moments.input[-1, -1] == pytest.approx(1.0)
        assert moments.value[-1, -1] == pytest.approx(1.0)
        assert moments.input.dtype == moments.value.dtype == moments.distances.dtype == torch.float64


@pytest.mark.parametrize("heads", [1, 3, 8, 12, 96])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 96, 511, 2048])
@pytest.mark.parametrize("width", [64, 1024])
def test_heads_share_the_positions_evenly(heads, length, width):
    places = sampled_positions(heads, length, width)
    assert len(places) == heads
    assert places.min() == 0 or length > 1
    assert 0 <= places.min() <= places.max() < length
    each = places.shape[1]
    assert each == min(length, max(1, max(min(length, width) // 2, LEAST_SAMPLED) // heads))
    assert all(len(set(row)) == each for row in places.tolist())  # a head looks at no position twice
    assert (places.diff(dim=1) >= length // each).all()
    counts = torch.bincount(places.flatten(), minlength=length)
    assert counts.max() - counts.min() <= 1  # nor do heads crowd anywhere
    if each == length:
        assert (counts == heads).all()


def test_attention_under_a_mask_is_what_the_model_computes(tiny_llama):
    """A window that slides: the mask comes in, and positions beyond it have no weight."""
    path = tiny_llama(4)
    spec = Source.open(path).spec
    model = load(path)
    windows = windows_of(40)[:1]
    mask = torch.ones(40, 40, dtype=torch.bool).tril().triu(-5)[None, None]
    found = collect_statistics(model, spec, [{"input_ids": windows, "attention_mask": mask}])
    for moments in found.values():
        assert moments.distances[:, :6].sum() == pytest.approx(4)
        assert moments.distances[:, 6:].abs().max() == 0


def test_frequencies_are_the_models_own(tiny_llama):
    path = tiny_llama(8)
    model, spec = load(path), Source.open(path).spec
    moments = collect_statistics(model, spec, windows_of(6))[0]
    expected = 10000.0 ** -(torch.arange(2).double() / 2)
    torch.testing.assert_close(moments.frequencies, expected, rtol=1e-6, atol=0)


def test_the_model_is_left_as_it_was(tiny_llama):
    path = tiny_llama(4)
    model, spec = load(path), Source.open(path).spec
    window = windows_of(10)[:1]
    before = model(input_ids=window).logits
    implementation = model.config._attn_implementation
    seen = []
    collect_statistics(model, spec, windows_of(10), seen.append)
    assert seen == [10, 10, 10]
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(input_ids=window).logits, before)


def test_left_as_it_was_after_a_failure_too(tiny_llama):
    path = tiny_llama(4)
    model, spec = load(path), Source.open(path).spec
    implementation = model.config._attn_implementation

    def stop(tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_statistics(model, spec, windows_of(10), stop)
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_activations_that_are_not_finite_name_the_layer(tiny_llama):
    path = tiny_llama(8)
    model, spec = load(path), Source.open(path).spec
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight[3] = float("nan")
    with pytest.raises(DataError, match="layer 2: activations of its attention are not finite"):
        collect_statistics(model, spec, windows_of(10))


def test_calibrating_keeps_no_model_alive(tiny_llama):
    path = tiny_llama()
    spec = Source.open(path).spec
    running = load(path)
    collect_statistics(running, spec, torch.randint(64, (1, 16)))
    alive = weakref.ref(running.model.layers[0].self_attn)
    del running
    gc.collect()
    assert alive() is None
