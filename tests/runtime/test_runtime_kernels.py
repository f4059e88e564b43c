"""The compiled products at decode against plain sums in float64."""

import builtins
import itertools
import sys
import threading

import pytest
import torch

from gqakit.models import decode_kernels
from gqakit.models.decode_kernels import mixture, scores, usable
from gqakit.models.remote_code import attention
from gqakit.models.remote_code.attention import GroupedHeads
from gqakit.models.remote_code.heads import HeadMaps


def groups_of(sizes):
    """Labels of groups of these sizes, mixed up."""
    labels = [head for head, size in enumerate(sizes) for _ in range(size)]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    return [labels[place] for place in order]


def check(labels, keys, values, length=1):
    torch.manual_seed(1)
    query = torch.randn(keys.shape[0], len(labels), length, keys.shape[-1])
    found = scores(query, keys, labels)
    expected = query.double() @ keys.double()[:, labels].mT
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    weights = found.softmax(-1)
    mixed = mixture(weights, values, labels)
    torch.testing.assert_close(
        mixed.double(), weights.double() @ values.double()[:, labels], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [8, 24, 64, 128])
def test_every_size_of_group(dim, dtype):
    labels = groups_of((8, 7, 6, 5, 4, 3, 2, 1))
    for positions, length in itertools.product((8, 9, 16, 33, 100), (1, 3)):
        torch.manual_seed(dim + positions)
        keys, values = (torch.randn(2, 8, positions, each).to(dtype) for each in (dim, dim + 8))
        check(labels, keys, values, length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_that_are_no_block_of_memory(dtype):
    torch.manual_seed(0)
    whole = torch.randn(3, 4, 50, 16).to(dtype)
    labels = groups_of((1, 3, 2, 5))
    turned = torch.randn(2, 30, 4, 16).to(dtype).transpose(1, 2)
    for states in (whole[:, :, :37], whole[1:, :, 5:40], turned, whole[:1].expand(2, -1, -1, -1)):
        check(labels, states, states.flip(0) if states.stride(0) else states)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_cache(threads, monkeypatch):
    monkeypatch.setattr(decode_kernels, "SHARED", 0)
    monkeypatch.setattr(decode_kernels, "PIECE", 40)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    check(groups_of((3, 1, 4)), torch.randn(2, 3, 130, 32), torch.randn(2, 3, 130, 16), length=2)


def test_callers_in_several_threads_do_not_meet():
    torch.manual_seed(0)
    labels, keys = groups_of((4, 2)), torch.randn(1, 2, 4096, 64)
    query = torch.randn(1, 6, 1, 64)
    alone, found = scores(query, keys, labels), {}

    def call(name):
        found[name] = scores(query, keys, labels)

    callers = [threading.Thread(target=call, args=(name,)) for name in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    assert all(torch.equal(each, alone) for each in found.values())


def test_what_the_kernels_take():
    states = torch.randn(1, 2, 9, 8)
    assert usable(states[:, :, :1], states, states)
    with torch.no_grad():
        assert usable(states, states.clone().requires_grad_(), states)
    wrong = {
        "differentiated": states.clone().requires_grad_(),
        "double": states.double(),
        "narrow": states[..., :4],
        "turned": states.mT,
        "elsewhere": states.to("meta"),
        "short": states[:, :, :7],
    }
    for name, other in wrong.items():
        assert not usable(states, other, states), name


def test_few_new_positions_over_a_long_cache_take_them(monkeypatch):
    heads = GroupedHeads(HeadMaps((0, 1, 0), (0, 1, 0)))
    called = []
    monkeypatch.setattr(heads, "_compiled", lambda *args: called.append(1))
    long, short = torch.randn(1, 2, 40_000, 8), torch.randn(1, 2, 100, 8)
    query = torch.randn(1, 3, 1, 8)
    heads.attend(query, long, long, None, 0.0, 1.0, False)
    assert called == [1]
    heads.attend(query, short, short, None, 0.0, 1.0, False)
    heads.attend(query.requires_grad_(), long, long, None, 0.0, 1.0, False)
    heads.attend(torch.randn(1, 3, 9, 8), long, long, None, 0.0, 1.0, False)
    assert called == [1]


@pytest.mark.parametrize("missing", ["numba", "gqakit.models.decode_kernels"])
def test_without_them_pytorch_does_it(missing, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == missing or (missing == "numba" and name.startswith("numba.")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "gqakit.models.decode_kernels")
    monkeypatch.delattr("gqakit.models.decode_kernels")
    if missing != "numba":  # an older gqakit, or none
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    attention.compiled_kernels.cache_clear()
    try:
        assert attention.compiled_kernels() is None
        heads = GroupedHeads(HeadMaps((0, 1, 0), (0, 1, 0)))
        long = torch.randn(1, 2, 40_000, 8)
        assert heads.attend(torch.randn(1, 3, 1, 8), long, long, None, 0.0, 1.0, False).shape == (1, 3, 1, 8)
    finally:
        attention.compiled_kernels.cache_clear()
