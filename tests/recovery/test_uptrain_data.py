"""What is held out, and what each step takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gqakit.errors import DataError, UsageError
from gqakit.recovery.distil.data import Sampler, micro_batches, split_windows
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


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_every_epoch_takes_every_example_once(size: int, per_step: int, seed: int) -> None:
    sampler = Sampler(size, per_step, seed)
    steps = 3 * size
    taken = [index for step in range(steps) for index in sampler.step(step)]
    for epoch in range(len(taken) // size):
        assert sorted(taken[epoch * size : (epoch + 1) * size]) == list(range(size))
    again = Sampler(size, per_step, seed)
    assert again.step(steps - 1) == sampler.step(steps - 1)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_a_step_is_the_same_examples_however_it_is_divided(
    per_device: int, processes: int, micro: int
) -> None:
    indices = list(range(per_device * processes * micro))
    shares = [micro_batches(indices, per_device, processes, rank, micro) for rank in range(processes)]
    assert all(len(share) == micro for share in shares)
    assert sorted(i for share in shares for batch in share for i in batch) == indices


def test_options_that_make_no_sense_are_all_named() -> None:
    with pytest.raises(UsageError) as error:
        UptrainOptions(train="head", learning_rate=0, window=1, temperature=float("nan"), ce=-1)
    for flag in ("--train 'head'", "--learning-rate", "--window", "--temperature", "--ce"):
        assert flag in str(error.value)


def test_losses_by_default_and_as_asked() -> None:
    assert UptrainOptions().weights(True).kl == 1
    assert UptrainOptions().weights(False).ce == 1
    mixed = UptrainOptions(ce=0.5, kl=2).weights(True)
    assert (mixed.ce, mixed.kl, mixed.hidden) == (0.5, 2, 0)
    with pytest.raises(UsageError, match="--teacher"):
        UptrainOptions(kl=1).weights(False)
    with pytest.raises(UsageError, match="weight 0"):
        UptrainOptions(ce=0).weights(True)
