"""What is held out, and what each step takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gqakit.errors import DataError, UsageError
from gqakit.recovery.distil.data import RunSampler, split_windows
from gqakit.recovery.distil.options import UptrainOptions


@given(st.integers(2, 400), st.integers(0, 20))
def test_windows_are_split_without_loss(count: int, asked: int) -> None:
    windows = torch.arange(2 * count).view(count, 2)
    if asked >= count:
        with pytest.raises(DataError, match="nothing is left to train on"):
            split_windows(windows, asked)
        return
    train, held_out = split_windows(windows, asked)
    assert len(held_out) == (asked or max(1, min(16, count // 16)))
    both = torch.cat([train, held_out])
    assert torch.equal(both[both[:, 0].argsort()], windows)


@given(st.integers(1, 30), st.integers(1, 90), st.integers(0, 3))
def test_every_epoch_takes_every_example_once(size: int, length: int, seed: int) -> None:
    sampler = RunSampler(size, length, seed)
    taken = list(sampler)
    assert len(taken) == len(sampler) == length
    for epoch in range(length // size):
        assert sorted(taken[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert list(RunSampler(size, length + size, seed))[:length] == taken, "a longer run begins alike"


def test_options_that_make_no_sense_are_all_named() -> None:
    with pytest.raises(UsageError) as error:
        UptrainOptions(train="head", learning_rate=0, window=1, temperature=float("nan"), ce=-1, kl=1)
    for seen in ("'head'", "`learning_rate`", "`window`", "`temperature`", "`ce`", "`teacher`"):
        assert seen in str(error.value)


def test_losses_by_default_and_as_asked() -> None:
    assert UptrainOptions(teacher="x").weights.kl == 1
    assert UptrainOptions().weights.ce == 1
    mixed = UptrainOptions(teacher="x", ce=0.5, kl=2).weights
    assert (mixed.ce, mixed.kl, mixed.hidden) == (0.5, 2, 0)
    with pytest.raises(UsageError, match="`teacher`"):
        UptrainOptions(kl=1)
    with pytest.raises(UsageError, match="weight 0"):
        UptrainOptions(ce=0)
