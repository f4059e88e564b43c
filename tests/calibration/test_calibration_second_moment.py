"""The running second moment against the plain one in float64."""

import pytest
import torch

from gqakit.calibration.second_moment import SecondMoment


@pytest.mark.parametrize("width", [1, 3, 4, 10, 37])
@pytest.mark.parametrize("sizes", [(1,), (5, 5, 5), (100,), (3, 90, 1, 40), (0, 7)])
def test_it_is_the_average_however_the_rows_come(width, sizes):
    rows = torch.randn(sum(sizes), width, generator=torch.Generator().manual_seed(width))
    running = SecondMoment(width)
    for part in rows.split(list(sizes)):
        running.add(part)
    assert running.count == len(rows)
    augmented = torch.cat([rows.double(), torch.ones(len(rows), 1).double()], dim=1)
    expected = augmented.T @ augmented / len(rows)
    found = running.mean()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found, found.T)
    assert torch.equal(running.mean(), found)  # asking changes nothing


def test_rows_may_change_after_they_were_taken():
    running, rows = SecondMoment(8), torch.ones(2, 2, 8)
    running.add(rows)
    rows.zero_()
    assert torch.equal(running.mean(), torch.ones(9, 9).double())


def test_many_small_additions_do_not_lose_digits():
    """Sums are in float64: in float32 alone the last additions would vanish beside the first."""
    running = SecondMoment(2)
    running.add(torch.tensor([[1e4, 0.0]] * 2))
    for _ in range(500):
        running.add(torch.tensor([[1.0, 1.0]] * 2))
    expected = (2e8 + 1000) / 1002
    assert running.mean()[0, 0].item() == pytest.approx(expected, rel=1e-9)


def test_nothing_seen_is_zero():
    assert not SecondMoment(3).mean().any()
    assert SecondMoment(3).count == 0
