"""Gradients of a sampled score, against the Fisher information that autograd gives over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gqakit.calibration.backward import NoGradientError, collect_gradients
from gqakit.calibration.backward_by_block import collect_gradients_by_block
from gqakit.calibration.sampled_output import sampled_score
from gqakit.core.gradients import LayerGradients
from gqakit.data.samples import text_batches
from gqakit.errors import DataError
from gqakit.models.blockwise.blocks import Blocks
from gqakit.models.blockwise.states import States
from gqakit.models.blockwise.stream import stream
from gqakit.models.outputs import Output
from gqakit.models.source import Source

HEADS, KV_HEADS, LAYERS, WIDTH, LENGTH = 8, 4, 4, 4, 6
DRAWS = 400

Tiny = Callable[..., Path]


def load(path: Path, how: str = "sdpa") -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(path, attn_implementation=how).eval()


def window() -> Tensor:
    return torch.randint(0, 64, (1, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["logits", "two logits", "states"])
def test_half_the_mean_square_of_the_score_is_the_divergence(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = {"logits": [(5, 7)], "two logits": [(1, 6, 4), (1, 6, 4)], "states": [(2, 5, 3)]}[kind]
    values = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
    change = [1e-3 * torch.randn(shape, generator=rng) for shape in shapes]
    output = Output(tuple(values), kind != "states")
    moved = Output(tuple(v.detach() + c for v, c in zip(values, change, strict=True)), kind != "states")
    squares: list[float] = []
    for _ in range(1000):
        gradients = torch.autograd.grad(sampled_score(output, rng), values)
        squares.append(float(sum((g * c).sum() for g, c in zip(gradients, change, strict=True))) ** 2)
    exact = Output(tuple(v.detach().double() for v in values), output.is_logits).divergence(
        Output(tuple(v.double() for v in moved.values), output.is_logits)
    )
    assert sum(squares) / len(squares) / 2 == pytest.approx(exact, rel=0.15)  # three standard errors


@pytest.fixture(scope="module")
def tiny(tiny_llama: Tiny) -> Path:
    return tiny_llama(KV_HEADS)


@pytest.fixture(scope="module")
def sampled(tiny: Path) -> dict[int, LayerGradients]:
    """From many backward passes over one window."""
    return collect_gradients(load(tiny), Source.open(tiny).spec, window().repeat(DRAWS, 1))


@pytest.fixture(scope="module")
def exact(tiny: Path) -> list[dict[str, Tensor]]:
    """The expectations of `LayerGradients`, from the gradient of every log-probability, by attention's own weights."""
    model = load(tiny, "eager").double()
    seen: dict[tuple[int, str], Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        attention.o_proj.register_forward_pre_hook(
            lambda module, args, index=index: seen.__setitem__((index, "delivered"), args[0])
        )
        for name in ("q_proj", "k_proj"):
            getattr(attention, name).register_forward_hook(
                lambda module, args, out, at=(index, name): seen.__setitem__(at, out)
            )
    made = model(input_ids=window(), output_attentions=True, use_cache=False)
    log_probs = made.logits[0].log_softmax(-1)
    delivered = [seen[index, "delivered"] for index in range(LAYERS)]
    value = [torch.zeros(KV_HEADS, WIDTH, WIDTH).double() for _ in range(LAYERS)]
    squares = [torch.zeros(HEADS, LENGTH, LENGTH).double() for _ in range(LAYERS)]
    for row in log_probs:
        for log_prob in row:
            gradients = torch.autograd.grad(
                log_prob, [*delivered, *made.attentions], retain_graph=True, allow_unused=True
            )
            share = float(log_prob.detach().exp()) / LENGTH
            for layer in range(LAYERS):
                of_delivered, of_weights = gradients[layer], gradients[LAYERS + layer]
                if of_delivered is None:
                    continue
                u = of_delivered[0].view(LENGTH, KV_HEADS, -1, WIDTH)
                value[layer] += share * torch.einsum("tkqi,tkqj->kij", u, u)
                weights = made.attentions[layer][0].detach()
                of_logits = weights * (of_weights[0] - (weights * of_weights[0]).sum(-1, keepdim=True))
                squares[layer] += share * of_logits.square()
    found: list[dict[str, Tensor]] = []
    for layer in range(LAYERS):
        q = seen[layer, "q_proj"][0].detach().view(LENGTH, HEADS, WIDTH)
        k = seen[layer, "k_proj"][0].detach()  # [S, heads · d]
        query = torch.einsum("hts,thi,thj->hij", squares[layer], q, q) / WIDTH  # logits are q · k / √d
        weight = squares[layer].sum((0, 1))
        distances = torch.zeros(KV_HEADS, LENGTH).double()
        for t in range(LENGTH):
            for s in range(t + 1):
                distances[:, t - s] += squares[layer][:, t, s].view(KV_HEADS, -1).sum(1)
        found.append(
            {
                "value": value[layer],
                "query": query.view(KV_HEADS, -1, WIDTH, WIDTH).sum(1),
                "key": (k.T * weight) @ k / weight.sum(),
                "distances": distances / distances.sum(1, keepdim=True),
            }
        )
    return found


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", ["value", "query", "key", "distances"])
def test_averages_come_to_the_fisher_information(
    sampled: dict[int, LayerGradients], exact: list[dict[str, Tensor]], name: str
) -> None:
    """Within a tenth, at 400 draws of 6 tokens each; those of another layer are nowhere near."""
    for layer in range(LAYERS):
        ours, theirs = getattr(sampled[layer], name), exact[layer][name]
        assert distance(ours, theirs) < 0.1
        if name in ("value", "query"):
            assert all(distance(ours, exact[other][name]) > 0.3 for other in range(LAYERS) if other != layer)


@pytest.mark.parametrize("side", ["value", "key"])
def test_small_random_errors_cost_what_is_predicted(
    tiny: Path, sampled: dict[int, LayerGradients], side: str
) -> None:
    """Errors of what a layer's values deliver, or of its logits through its keys; measured as the real KL, within 15 %."""
    model, spec = load(tiny), Source.open(tiny).spec
    with torch.no_grad():
        source = Output.of(model(input_ids=window(), use_cache=False))
    predicted, measured = [], []
    for layer in range(LAYERS):
        metric = getattr(sampled[layer], "value" if side == "value" else "query")
        size = (1e-3 / float(metric.diagonal(dim1=1, dim2=2).sum())) ** 0.5  # of every channel's error
        predicted.append(0.5 * size**2 * float(metric.diagonal(dim1=1, dim2=2).sum()))
        rng = torch.Generator().manual_seed(layer)
        with _erring(model, spec.attention_module(model, layer), side, size, rng), torch.no_grad():
            losses = [
                source.divergence(Output.of(model(input_ids=window(), use_cache=False))) for _ in range(60)
            ]
        measured.append(sum(losses) / len(losses))
    for ours, theirs in zip(predicted, measured, strict=True):
        assert ours == pytest.approx(theirs, rel=0.15)


class _erring:  # noqa: N801  # a context
    """One layer whose attention makes random errors, independent of each other: of each delivered vector, or each key
    as one query meets it."""

    def __init__(self, model: Any, layer: Any, side: str, size: float, rng: torch.Generator) -> None:
        self.model, self.layer, self.side, self.size, self.rng = model, layer, side, size, rng

    def __enter__(self) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register("erring", self.attend)
        self.before, self.model.config._attn_implementation = self.model.config._attn_implementation, "erring"

    def __exit__(self, *raised: object) -> None:
        self.model.config._attn_implementation = self.before

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **how: Any) -> Any:
        if module is not self.layer:
            return sdpa_attention_forward(module, query, key, value, mask, **how)
        if self.side == "value":
            out, _ = sdpa_attention_forward(module, query, key, value, mask, **how)
            return out + self.size * torch.randn(out.shape, generator=self.rng), None
        key, value = (states.repeat_interleave(HEADS // KV_HEADS, 1) for states in (key, value))
        error = self.size * torch.randn(*query.shape[:3], key.shape[2], WIDTH, generator=self.rng)
        scores = query @ key.mT + (query[..., None, :] * error).sum(-1)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = (scores / WIDTH**0.5).masked_fill(later, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None


def test_attention_is_made_again_a_few_queries_at_a_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Source.open(tiny).spec
    whole = collect_gradients(load(tiny), spec, window())
    monkeypatch.setattr("gqakit.calibration.gradient_sums.NUMBERS", 2 * HEADS * LENGTH)
    for layer, parts in collect_gradients(load(tiny), spec, window()).items():
        for name in ("value", "query", "key", "distances"):
            torch.testing.assert_close(
                getattr(parts, name), getattr(whole[layer], name), rtol=1e-4, atol=1e-7
            )


def test_the_model_is_left_as_it_was(tiny: Path) -> None:
    model, spec = load(tiny), Source.open(tiny).spec
    before = model(input_ids=window()).logits
    seen: list[int] = []
    collect_gradients(model, spec, window().repeat(2, 1), seen.append)
    assert seen == [LENGTH, LENGTH]
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(input_ids=window()).logits, before)


def test_a_gradient_that_is_no_number_names_its_layer(tiny: Path) -> None:
    """The root of zero is finite and its slope is not; layers after it are sound, those before it come later."""
    model, spec = load(tiny), Source.open(tiny).spec
    model.model.layers[2].register_forward_hook(lambda module, args, out: out + (0 * out).abs().sqrt())
    with pytest.raises(DataError, match="layer 2: gradients of its attention are not finite"):
        collect_gradients(model, spec, window())


def test_a_model_that_cannot_be_differentiated_says_so(tiny: Path) -> None:
    model, spec = load(tiny), Source.open(tiny).spec
    model.model.layers[1].register_forward_hook(lambda module, args, out: out.detach())
    with pytest.raises(NoGradientError, match="does not require grad"):
        collect_gradients(model, spec, window())


def test_block_by_block_they_are_the_whole_model_s(tiny: Path, tmp_path: Path) -> None:
    source = Source.open(tiny)
    batches = text_batches(torch.cat([window(), window().flip(1)]), cached=True)
    whole = collect_gradients(load(tiny), source.spec, batches)
    states = States(0, tmp_path, {"text": "a"})  # everything in files
    blocks = Blocks(source.checkpoint, source.spec, states=states)
    numbered = dict(enumerate(batches))
    stream(blocks, numbered, keep=True)
    found: dict[int, LayerGradients] = {}
    collect_gradients_by_block(blocks, numbered, found.__setitem__)
    assert list(found) == list(whole)[::-1]
    for layer, ours in found.items():
        for name in ("value", "query", "key", "distances"):
            torch.testing.assert_close(getattr(ours, name), getattr(whole[layer], name), rtol=1e-4, atol=1e-7)
    assert not [path for path in tmp_path.iterdir() if "gradient" in path.name or "enter" in path.name]
