"""Cache types against other implementations of theirs, and against what they promise."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import cache_utils

from gqakit.core.cache_types import TYPES, cache_pair, cache_type
from gqakit.core.cache_types.hadamard import hadamard, largest_power, rotated

BLOCK_TYPES = {"q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18, "iq4_nl": 18}
"""Bytes of a block of 32 in ggml."""


def states() -> torch.Tensor:
    """Of every size, with ties, zeros, tiny numbers and numbers of 16 bits, `[rows, 64]`."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(800, 64, generator=generator) * torch.rand(800, 1, generator=generator) * 30
    whole = torch.randint(-8, 9, (200, 64), generator=generator).float()
    return torch.cat([wide, whole, torch.zeros(2, 64), wide[:50] * 1e-8, wide[:100].half().float()])


def in_ggml(name: str, rows: torch.Tensor) -> torch.Tensor:
    """What ggml's reference functions give back, called in the library that runs llama.cpp."""
    xllamacpp = pytest.importorskip("xllamacpp")
    (path,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    library = ctypes.CDLL(str(path))
    given, count = np.ascontiguousarray(rows.numpy()), ctypes.c_int64(rows.numel())
    packed, back = np.zeros(rows.numel() // 32 * BLOCK_TYPES[name], np.uint8), np.zeros_like(given)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (given, packed, back)]
    getattr(library, f"quantize_row_{name}_ref")(*pointers[:2], count)
    getattr(library, f"dequantize_row_{name}")(*pointers[1:], count)
    return torch.from_numpy(back)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_blocks_are_ggmls_to_the_bit(name):
    assert torch.equal(cache_type(name).stored(states()), in_ggml(name, states()))


@pytest.mark.parametrize("name", [name for name in BLOCK_TYPES if name != "iq4_nl"])  # which gguf only reads
def test_blocks_are_those_of_the_gguf_package_to_the_bit(name):
    gguf = pytest.importorskip("gguf")
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    theirs = gguf.dequantize(gguf.quantize(states().numpy(), kind), kind)
    assert torch.equal(cache_type(name).stored(states()), torch.from_numpy(theirs))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_bytes_are_those_of_ggml(name):
    assert cache_type(name).nbytes(64) == 2 * BLOCK_TYPES[name]
    assert cache_type(f"{name}+h").nbytes(64) == 2 * BLOCK_TYPES[name]


def test_bytes_of_the_others():
    named = ("f16", "bf16", "fp8", "fp8_per_token_head", "fp8_per_tensor")
    assert {name: TYPES[name].nbytes(64) for name in named} == dict(
        zip(named, (128, 128, 64, 68, 64), strict=True)
    )
    assert cache_type("quanto4/64").nbytes(64) == 32 + 2 * 2  # a scale and a smallest value
    assert cache_type("quanto2/32").nbytes(64) == 16 + 2 * 2 * 2
    assert cache_type("int3/32").bits(64) == 3.5
    assert cache_pair("q8_0,q4_0").nbytes(3, 2, 64) == 3 * 68 + 2 * 36


def test_the_types_for_study_go_through_q4_0_and_q5_0():
    assert torch.equal(cache_type("int4/32").stored(states()), cache_type("q4_0").stored(states()))
    assert torch.equal(cache_type("int5/32").stored(states()), cache_type("q5_0").stored(states()))


def test_more_bits_and_smaller_groups_lose_less():
    rows = states()[:800]
    errors = [
        float((cache_type(name).stored(rows) - rows).square().sum())
        for name in ("int2/64", "int2/16", "int3/64", "int4/64", "int4/16", "int6/64", "int8/64", "f16")
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_scale_saves_what_fp8_cuts_off():
    rows = torch.tensor([[1.0, -3000.0], [1e-6, 2e-6], [0.0, 0.0]])
    assert cache_type("fp8").stored(rows).tolist() == [[1.0, -448.0], [0.0, 0.0], [0.0, 0.0]]
    assert cache_type("fp8").stored(-rows).tolist() == [[-1.0, 448.0], [0.0, 0.0], [0.0, 0.0]]
    scaled = cache_type("fp8_per_token_head").stored(rows)
    torch.testing.assert_close(scaled, rows, rtol=2**-4, atol=1e-1)
    assert scaled[0, 1] == -3000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group"), [(4, 64), (2, 32)])
def test_quanto_is_what_transformers_runs_to_the_bit(bits: int, group: int, dtype: torch.dtype) -> None:
    pytest.importorskip("optimum.quanto")
    layer = cache_utils.QuantoQuantizedLayer(nbits=bits, q_group_size=group)
    rows = states()[:1000].to(dtype).reshape(2, 5, 100, 64)  # [batch, heads, positions, channels]
    theirs = layer._dequantize(layer._quantize(rows, axis=0))
    assert torch.equal(cache_type(f"quanto{bits}/{group}").stored(rows), theirs)


def test_quanto_keeps_a_block_of_equal_values() -> None:
    rows = torch.full((1, 64), 3.25)
    assert torch.equal(cache_type("quanto4/64").stored(rows), rows)


def test_fp8_of_a_whole_layer_is_transformers_to_the_bit() -> None:
    kind = getattr(cache_utils, "Fp8QuantizedLayer", None)
    if kind is None:
        pytest.skip("this transformers has no fp8 cache")
    layer, rows = kind(), states()[:1000].reshape(2, 5, 100, 64)
    layer.dtype = torch.float32
    assert torch.equal(cache_type("fp8_per_tensor").stored(rows), layer._dequantize(layer._quantize(rows)))


def test_a_rotation_is_its_own_inverse_and_spreads_an_outlier():
    assert torch.equal(hadamard(8), hadamard(8).T)
    torch.testing.assert_close(hadamard(64) @ hadamard(64), torch.eye(64))
    assert [largest_power(width) for width in (64, 96, 80, 3)] == [64, 32, 16, 1]
    assert largest_power(128, 64) == 64
    spike = torch.zeros(1, 96)
    spike[0, 40] = 1.0
    assert rotated(spike, 32).abs().max() == pytest.approx(32**-0.5)
    outlier = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
    outlier[:, 3] += 40
    plain, turned = (
        float((cache_type(name).stored(outlier) - outlier).square().sum()) for name in ("q4_0", "q4_0+h")
    )
    assert turned < plain / 2


def test_values_are_rotated_by_64_and_keys_by_all_channels():
    pair = cache_pair("q4_0+h")
    rows = torch.zeros(1, 128)
    rows[0, 5] = 1.0
    keys, values = pair.stored(rows, rows)
    # Through a type that keeps too little of a spread spike to give it back whole, the other half shows what was rotated.
    assert pair.key.most is None
    assert pair.value.most == 64
    assert keys.shape == values.shape == rows.shape
    assert values[0, 64:].abs().max() == 0


def test_a_gradient_goes_straight_through():
    rows = states()[:4].clone().requires_grad_()
    keys, values = cache_pair("q4_0,f16").stored(rows, rows)
    torch.testing.assert_close(keys.detach(), cache_type("q4_0").stored(rows.detach()), rtol=1e-5, atol=1e-6)
    (2 * keys + values).sum().backward()
    assert torch.equal(rows.grad, torch.full_like(rows, 3.0))


@pytest.mark.parametrize("name", ["q3_0", "int1/32", "int4/0", "q4_0+g", "", "q4_0,q4_0,q4_0", "int4"])
def test_what_is_no_type_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"q8_0|expected one"):
        cache_pair(name)


def test_blocks_that_do_not_divide_a_head_are_a_problem():
    assert list(cache_pair("q4_0").problems(80)) == ["q4_0 rounds blocks of 32 channels, and a head has 80"]
    assert len(list(cache_pair("q8_0,q4_0").problems(80))) == 2
    assert list(cache_pair("fp8+h").problems(7)) == [
        "fp8+h rotates by a Hadamard matrix, which a head of 7 channels has none of"
    ]
    assert list(cache_pair("int4/16,fp8").problems(80)) == []
