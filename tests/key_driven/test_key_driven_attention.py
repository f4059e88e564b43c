"""Key-driven attention: allocations, moving averages, noise, and what is left of them when training is over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gqakit.key_driven.attention import (
    DynamicKeyDistributed,
    KeyDistributed,
    KeyDrivenHeads,
    Perturbed,
    UpdateSchedule,
    diagonal,
    key_norms,
    perturbation,
)
from gqakit.models.remote_code.attention import GroupedHeads
from gqakit.models.remote_code.heads import HeadMaps

HEADS, GROUPS, LENGTH, DIM = 6, 3, 5, 4
REST = (None, 0.0, DIM**-0.5, False)


def states(seed: int = 0, batch: int = 2, length: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(batch, n, length, DIM, generator=rng) for n in (HEADS, GROUPS, GROUPS))
    return query, key, value


def with_norms(*norms: float, batch: int = 2) -> Tensor:
    """Keys whose norms over positions and channels are these, in every image."""
    key = states(9, batch)[1]
    return key / key.square().sum((2, 3), keepdim=True).sqrt() * torch.tensor(norms).view(1, -1, 1, 1)


def plain(*labels: int) -> GroupedHeads:
    return GroupedHeads(HeadMaps(labels, labels))


def dynamic(by_change: bool = False, window: int = 3, decay: float = 0.5) -> DynamicKeyDistributed:
    return DynamicKeyDistributed(HEADS, GROUPS, 0, UpdateSchedule(window, decay), by_change=by_change)


EVERY = [
    KeyDistributed(HEADS, GROUPS, 0, UpdateSchedule()),
    dynamic(False),
    dynamic(True),
    Perturbed(HEADS, GROUPS, 0, UpdateSchedule()),
]


@pytest.mark.parametrize("heads", EVERY, ids=["kdgqa", "dgqa-ema", "dgqa-diff", "pgqa"])
@pytest.mark.parametrize("length", [LENGTH, 40])  # attention takes another path from 33 positions on
def test_before_training_it_is_plain_grouping_to_the_bit(heads: KeyDrivenHeads, length: int):
    query, key, value = states(length=length)
    expected = plain(0, 0, 1, 1, 2, 2).attend(query, key, value, *REST)
    assert torch.equal(heads.eval().attend(query, key, value, *REST), expected)


def test_norms_are_of_each_image():
    key = torch.cat([with_norms(1, 2, 3, batch=1), with_norms(3, 2, 5, batch=1)])
    torch.testing.assert_close(key_norms(key), torch.tensor([2.0, 2.0, 4.0]))


def test_kdgqa_shares_out_by_the_batch_while_it_trains():
    heads = KeyDistributed(HEADS, GROUPS, 0, UpdateSchedule(decay=0.5))
    query, _, value = states()
    key = with_norms(1, 2, 3)  # scaled to 0, 1/2, 1: shares 0, 2, 4, and the first is owed one
    out = heads.train().attend(query, key, value, *REST)
    assert torch.equal(out, plain(0, 1, 1, 2, 2, 2).attend(query, key, value, *REST))
    key = with_norms(3, 1, 1)
    out = heads.attend(query, key, value, *REST)
    assert torch.equal(out, plain(0, 0, 0, 0, 1, 2).attend(query, key, value, *REST))
    torch.testing.assert_close(heads.average, torch.tensor([2.0, 1.5, 2.0]))
    assert heads.frozen() == (
        3,
        1,
        2,
    )  # the average scaled to 1, 0, 1: shares 3, 0, 3; the second is owed one
    # What the images of an evaluation batch are changes nothing.
    one = heads.eval().attend(query[:1], key[:1], value[:1], *REST)
    assert torch.equal(one, heads.attend(query, key, value, *REST)[:1])
    assert int(heads.steps) == 2


def test_dgqa_waits_for_a_window_and_keeps_a_moving_average():
    heads = dynamic(window=3, decay=0.5).train()
    for step, (norms, average, allocation) in enumerate(
        [
            ((1, 1, 1), (1, 1, 1), (2, 2, 2)),
            ((1, 1, 9), (1, 1, 5), (2, 2, 2)),
            ((1, 1, 5), (1, 1, 5), (1, 1, 4)),  # shares 6/7, 6/7, 30/7
            ((9, 1, 1), (5, 1, 3), (1, 1, 4)),
            ((9, 1, 1), (7, 1, 2), (1, 1, 4)),
            ((9, 1, 2), (8, 1, 2), (4, 1, 1)),  # shares 4.36, 0.55, 1.09
        ],
        start=1,
    ):
        assert heads.allocate(with_norms(*norms)) == allocation
        torch.testing.assert_close(heads.average, torch.tensor(average, dtype=torch.float32))
        assert int(heads.steps) == step
    assert heads.eval().allocate(with_norms(1, 1, 100)) == heads.frozen() == (4, 1, 1)


def test_dgqa_by_change_looks_at_the_window():
    heads = dynamic(by_change=True, window=2, decay=0.0).train()  # the average is the last value
    assert heads.allocate(with_norms(5, 5, 5)) == (2, 2, 2)
    assert heads.allocate(with_norms(5, 7, 8)) == (1, 2, 3)  # changes 0, 2, 3: shares 0, 2.4, 3.6
    heads.allocate(with_norms(5, 6, 9))
    assert heads.allocate(with_norms(1, 7, 8)) == (4, 1, 1)  # changes 4, 0, 0 over the window
    heads.allocate(with_norms(1, 6, 8))
    assert heads.allocate(with_norms(1, 7, 8)) == (2, 2, 2)  # nothing moved


@pytest.mark.parametrize("heads", EVERY, ids=["kdgqa", "dgqa-ema", "dgqa-diff", "pgqa"])
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_equal_norms_are_safe(heads: KeyDrivenHeads, size: float):
    query, key, value = states()
    key = key[:, :1].expand(-1, GROUPS, -1, -1).contiguous() * size
    heads.train()
    for _ in range(7):
        assert torch.isfinite(heads.attend(query, key, value, *REST)).all()
    assert heads.frozen() == (2, 2, 2)


@pytest.mark.parametrize("heads", [KeyDistributed(HEADS, GROUPS, 0, UpdateSchedule()), dynamic()])
def test_norms_that_are_no_numbers_are_left_out(heads: KeyDrivenHeads):
    heads.train()
    heads.allocate(with_norms(1, 2, 3))
    heads.allocate(with_norms(1, float("nan"), 3))
    assert torch.isfinite(heads.average).all()
    assert sum(heads.frozen()) == HEADS


def test_noise_has_no_mean_no_diagonal_and_the_deviation_of_its_head():
    sizes = (2, 1, 3)
    out = states()[0] * torch.arange(1, HEADS + 1).view(1, -1, 1, 1) + 7
    rng = torch.Generator().manual_seed(1)
    draws = torch.stack([perturbation(out, sizes, rng) for _ in range(4000)]).flatten(3)
    deviation = out.flatten(2).std(-1)
    assert diagonal(sizes) == [0, 1, 0, 0, 1, 2]
    for head, column in enumerate(diagonal(sizes)):
        assert not draws[:, :, head, column].any()
        others = [c for c in range(LENGTH * DIM) if c != column]
        scaled = draws[:, :, head, others] / deviation[:, head, None]
        assert abs(float(scaled.mean())) < 0.02
        assert scaled.mean(0).abs().max() < 0.09  # 5.7 deviations of a mean of 4,000
        assert float(scaled.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(draws[:, 0], draws[:, 1])  # each image has its own


def test_pgqa_is_plain_grouping_but_for_the_noise():
    query, key, value = states()
    expected = plain(0, 0, 1, 1, 2, 2).attend(query, key, value, *REST)
    heads = Perturbed(HEADS, GROUPS, 3, UpdateSchedule(seed=5)).train()
    first, second = (heads.attend(query, key, value, *REST) for _ in range(2))
    assert not torch.equal(first, second)
    for head, column in enumerate(diagonal((2, 2, 2))):
        assert torch.equal(first.flatten(2)[:, head, column], expected.flatten(2)[:, head, column])
    again = Perturbed(HEADS, GROUPS, 3, UpdateSchedule(seed=5)).train()
    assert torch.equal(again.attend(query, key, value, *REST), first)
    again.draws.zero_()
    assert torch.equal(again.attend(query, key, value, *REST), first)  # chance is in what is saved
    other = Perturbed(HEADS, GROUPS, 4, UpdateSchedule(seed=5)).train()
    assert not torch.equal(other.attend(query, key, value, *REST), first)
    mean = torch.stack([heads.attend(query, key, value, *REST) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.1, rtol=0)


def test_gradients_flow_through_every_kind():
    for heads in EVERY:
        query, key, value = (each.requires_grad_() for each in states(4))
        heads.train().attend(query, key, value, *REST).square().sum().backward()
        for each in (query, key, value):
            assert each.grad is not None
            assert torch.isfinite(each.grad).all()
            assert each.grad.any()
