"""The attention function against plain softmax over repeated heads in float64."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from runtime_models import CONTIGUOUS, IDENTITY, ONE, UNEQUAL
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gqakit.models.remote_code import attention
from gqakit.models.remote_code.attention import GroupedHeads, grouped_attention_forward, rows_on_cpu
from gqakit.models.remote_code.heads import HeadMaps

BATCH, HEADS, DIM, VALUE_DIM = 2, 8, 8, 6
LENGTHS = 1, 3, 40  # a decoded token, some, more than are packed
MAPS = {
    "contiguous": (CONTIGUOUS, CONTIGUOUS),
    "unequal": (UNEQUAL, UNEQUAL),
    "identity": (IDENTITY, IDENTITY),
    "one": (ONE, ONE),
    "two maps": (UNEQUAL, [2, 0, 1, 0, 1, 1, 1, 0]),
    "two counts": (IDENTITY, ONE),
}
LAYOUTS = {"padded": 1 << 62, "ragged": 0, "compiled": 0}


def module(maps, is_causal=True):
    return SimpleNamespace(grouped_heads=GroupedHeads(HeadMaps(*map(tuple, maps))), is_causal=is_causal)


def states(maps, length, positions, dtype=torch.float32):
    torch.manual_seed(length + positions)
    counts = HEADS, max(maps[0]) + 1, max(maps[1]) + 1
    shapes = ((length, DIM), (positions, DIM), (positions, VALUE_DIM))
    return [torch.randn(BATCH, count, *shape).to(dtype) for count, shape in zip(counts, shapes, strict=True)]


def mask_of(kind, length, positions):
    """A boolean mask of the kind; every row sees something."""
    if kind is None:
        return None
    shape = {
        "keys": (BATCH, 1, 1, positions),
        "shared": (1, 1, length, positions),
        "rows": (BATCH, 1, length, positions),
        "heads": (BATCH, HEADS, length, positions),
    }[kind]
    mask = torch.rand(shape) < 0.7
    mask[..., 0] = True
    return mask


def reference(maps, query, key, value, mask=None, bias=None, causal=False, scaling=DIM**-0.5, softcap=None):
    query, key, value = query.double(), key.double()[:, maps[0]], value.double()[:, maps[1]]
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[2:], dtype=torch.bool).tril(), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    monkeypatch.setattr(attention, "MANY_CACHED", LAYOUTS[request.param])
    if request.param == "compiled":
        monkeypatch.setattr(sys.modules[__name__], "VALUE_DIM", 24)  # the kernels take multiples of 8
    else:
        monkeypatch.setattr(attention, "compiled_kernels", lambda: None)
    return request.param


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_masks_and_caps(maps):
    kinds = None, "keys", "shared", "rows", "heads"
    for length, kind, softcap in itertools.product(LENGTHS, kinds, (None, 0.7)):
        check_masks_and_caps(maps, length, kind, softcap)


def check_masks_and_caps(maps, length, kind, softcap):
    inputs = states(maps, length, 50)
    mask = mask_of(kind, length, 50)
    out, _ = grouped_attention_forward(
        module(maps), *inputs, mask, is_causal=False, scaling=0.9, softcap=softcap
    )
    expected = reference(maps, *inputs, mask=mask, scaling=0.9, softcap=softcap)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)
    if mask is not None:  # the same mask, added to the scores
        added = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        out, _ = grouped_attention_forward(module(maps), *inputs, added, scaling=0.9, softcap=softcap)
        torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_position_bias(maps):
    shapes = (1, HEADS), (BATCH, HEADS), (1, 1)
    for length, shape, mask_kind in itertools.product(LENGTHS, shapes, (None, "rows", "added")):
        check_position_bias(maps, length, shape, mask_kind)


def check_position_bias(maps, length, shape, mask_kind):
    inputs = states(maps, length, length + 7)
    bias = torch.randn(*shape, length, length + 7)
    mask = mask_of(mask_kind and "rows", length, length + 7)
    given = torch.where(mask, 0.0, -1e9) if mask_kind == "added" else mask
    out, _ = grouped_attention_forward(module(maps, False), *inputs, given, position_bias=bias)
    expected = reference(maps, *inputs, mask=mask, bias=bias)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_sinks(maps, layout):
    """A sink is one more key, of a fixed score and of zeros for a value."""
    sinks = torch.randn(HEADS)
    for length, kind in itertools.product(LENGTHS, (None, "rows")):
        query, key, value = states(maps, length, 48)
        mask = mask_of(kind, length, 48)
        whole = mask if mask is None else torch.nn.functional.pad(mask, (0, 1), value=True)
        bias = torch.cat(
            [torch.zeros(1, HEADS, length, 48), sinks.view(1, -1, 1, 1).expand(-1, -1, length, -1)], 3
        )
        more_key, more_value = (torch.nn.functional.pad(each, (0, 0, 0, 1)) for each in (key, value))
        expected = reference(maps, query, more_key, more_value, whole, bias)
        given = {"attention_mask": mask, "s_aux": sinks, "is_causal": False, "output_attentions": True}
        out, weights = grouped_attention_forward(module(maps), query, key, value, **given)
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
        mixed = weights @ value[:, maps[1]]
        torch.testing.assert_close(mixed.transpose(1, 2).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_causal(maps):
    for length, extra in itertools.product((3, 40), ("nothing", "bias", "cap")):
        inputs = states(maps, length, length)
        bias = torch.randn(1, HEADS, length, length) if extra == "bias" else None
        softcap = 0.7 if extra == "cap" else None
        out, _ = grouped_attention_forward(module(maps), *inputs, None, position_bias=bias, softcap=softcap)
        expected = reference(maps, *inputs, bias=bias, causal=True, softcap=softcap)
        torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


def test_capped_scores_in_blocks_of_queries(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    maps = MAPS["two maps"]
    inputs = states(maps, 40, 40)
    out, _ = grouped_attention_forward(module(maps), *inputs, None, softcap=0.7)
    expected = reference(maps, *inputs, causal=True, softcap=0.7)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_cross_attention_sees_every_position(maps):
    for length, kind in itertools.product((1, 5, 40), (None, "keys")):
        inputs = states(maps, length, 23)
        mask = mask_of(kind, length, 23)
        out, _ = grouped_attention_forward(module(maps, is_causal=False), *inputs, mask)
        expected = reference(maps, *inputs, mask=mask)
        torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_half_precision_decode(maps, monkeypatch):
    monkeypatch.setattr(attention, "WIDENED_POSITIONS", 16)
    for dtype, softcap in itertools.product((torch.bfloat16, torch.float16), (None, 0.7)):
        inputs = states(maps, 1, 50, dtype)
        mask = mask_of("heads", 1, 50)
        out, _ = grouped_attention_forward(module(maps), *inputs, mask, softcap=softcap)
        assert out.dtype == dtype
        expected = reference(maps, *inputs, mask=mask, softcap=softcap)
        torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_gradients(maps):
    for length in (1, 5):
        inputs = [each.requires_grad_() for each in states(maps, length, 9)]
        out, _ = grouped_attention_forward(module(maps, False), *inputs, None)
        outs = out.double(), reference(maps, *inputs)
        grads = [torch.autograd.grad(each.square().sum(), inputs) for each in outs]
        for grad, expected in zip(*grads, strict=True):
            torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("layout")
def test_every_query_head_its_own_is_sdpa_to_the_bit():
    maps = MAPS["identity"]
    for length, kind in itertools.product((1, 5, 40), (None, "rows")):
        inputs = states(maps, length, length)
        mask = mask_of(kind, length, length)
        out, _ = grouped_attention_forward(module(maps), *inputs, mask)
        assert torch.equal(out, sdpa_attention_forward(SimpleNamespace(is_causal=True), *inputs, mask)[0])


@pytest.mark.parametrize(
    ("length", "kind"), [(1, "keys"), (40, None), (40, "rows")], ids=["decode", "causal", "masked"]
)
def test_ordinary_groups_in_order_are_sdpa_to_the_bit(length, kind, layout):
    if layout == "compiled" and length == 1:
        pytest.skip("a long cache is read by kernels of our own")
    maps = MAPS["contiguous"]
    query, key, value = states(maps, length, 40)
    mask = mask_of(kind, length, 40)
    stock = SimpleNamespace(is_causal=True, num_key_value_groups=4)
    for inputs in ((query, key, value), (query, key, value[..., :DIM].contiguous())):
        out, _ = grouped_attention_forward(module(maps), *inputs, mask)
        assert torch.equal(out, sdpa_attention_forward(stock, *inputs, mask)[0])


def test_a_module_without_head_maps_keeps_its_stock_heads():
    stock = SimpleNamespace(is_causal=False, num_key_value_groups=4)
    for length, kind, biased in itertools.product((1, 5), (None, "rows"), (False, True)):
        inputs = states(MAPS["contiguous"], length, 9)
        mask = mask_of(kind, length, 9)
        bias = torch.randn(1, HEADS, length, 9) if biased else None
        out, _ = grouped_attention_forward(stock, *inputs, mask, position_bias=bias)
        expected = reference(MAPS["contiguous"], *inputs, mask=mask, bias=bias)
        torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


def test_rows_never_fewer_than_the_group():
    assert [rows_on_cpu(group) for group in (1, 2, 3, 4, 5, 6, 8, 9, 10, 17)] == [
        1,
        4,
        4,
        4,
        5,
        8,
        8,
        9,
        16,
        17,
    ]
    assert all(rows_on_cpu(group) >= group for group in range(1, 200))
