"""Averages over rotations against explicit sums."""

import pytest
import torch
from core_layers import STRUCTURES, looked_at, random_distances
from torch import Tensor

from gqakit.core.distances import Rotation, beyond_window
from gqakit.core.rope import Channels

TURNING = ["rotary", "partial", "interleaved"]


def explicit(channels: Channels, frequencies: Tensor, distance: int) -> Tensor:
    """What a query sees of a key `distance` positions before it: the key turned back by that much."""
    out = torch.eye(channels.head_dim, dtype=torch.float64)
    for a, b, rate in zip(channels.first, channels.second, frequencies, strict=True):
        cos, sin = torch.cos(-distance * rate), torch.sin(-distance * rate)
        out[a, a], out[b, b], out[a, b], out[b, a] = cos, cos, -sin, sin
    return out


@pytest.fixture(params=TURNING)
def case(request):
    channels = STRUCTURES[request.param]
    frequencies = torch.tensor([0.83, 0.31, 0.047], dtype=torch.float64)[: len(channels.first)]
    share = 5 * random_distances(1, 3)[0]  # any sum above 0
    return channels, frequencies, share


def test_forward_and_backward_are_averages(case):
    channels, frequencies, share = case
    rotation = Rotation.over(share, frequencies, channels)
    x = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turns = [explicit(channels, frequencies, t) for t in range(len(share))]
    forward = sum(p * r @ x @ r.T for p, r in zip(share, turns, strict=True)) / share.sum()
    backward = sum(p * r.T @ x @ r for p, r in zip(share, turns, strict=True)) / share.sum()
    torch.testing.assert_close(rotation.forward(x), forward, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation.backward(x), backward, rtol=0, atol=1e-12)
    assert (forward - backward).abs().max() > 1e-2  # or the direction could not be told


def test_beyond_the_window_there_is_a_tail(case):
    channels, frequencies, share = case
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = looked_at(share)
    assert weights.sum() == pytest.approx(1.0)
    expected = Rotation.over(weights, frequencies, channels).forward(x)
    torch.testing.assert_close(
        Rotation.over(beyond_window(share), frequencies, channels).forward(x), expected
    )
    within = Rotation.over(share, frequencies, channels).forward(x)
    assert (within - expected).abs().max() > 1e-3


def test_heads_may_be_stacked(case):
    channels, frequencies, _ = case
    shares = random_distances(3, 5)
    stacked = Rotation.over(beyond_window(shares), frequencies, channels)
    each = [Rotation.over(beyond_window(share), frequencies, channels) for share in shares]
    x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    apart = torch.stack([one.forward(y) for one, y in zip(each, x, strict=True)])
    torch.testing.assert_close(stacked.forward(x), apart)
    picked = stacked.select(torch.tensor([2, 0]))
    torch.testing.assert_close(picked.forward(x[[2, 0]]), apart[[2, 0]])
    average = sum(one.forward(x[0]) for one in each) / 3
    torch.testing.assert_close(stacked.mean().forward(x[0]), average)


def test_one_distance_of_zero_turns_nothing(case):
    channels, frequencies, _ = case
    rotation = Rotation.over(torch.tensor([1.0]), frequencies, channels)
    x = torch.randn(6, 6, dtype=torch.float64)
    torch.testing.assert_close(rotation.forward(x), x)


def test_all_distances_is_the_limit_of_many(case):
    channels, frequencies, _ = case
    many = Rotation.over(torch.ones(20_000), frequencies, channels)
    limit = Rotation.all_distances(channels)
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(many.forward(x), limit.forward(x), rtol=0, atol=5e-3)
    torch.testing.assert_close(many.backward(x), limit.backward(x), rtol=0, atol=5e-3)


def test_all_distances_keeps_complex_multiples(case):
    channels, _, _ = case
    rotation = Rotation.all_distances(channels)
    x = torch.zeros(6, 6, dtype=torch.float64)
    for a, b in zip(channels.first, channels.second, strict=True):
        x[a, a] = x[b, b] = 0.7
        x[b, a], x[a, b] = 0.2, -0.2
    for a in channels.free:
        for b in channels.free:
            x[a, b] = a + 10 * b
    torch.testing.assert_close(rotation.forward(x), x)


def test_rotation_keeps_what_a_moment_adds_up_to(case):
    channels, frequencies, share = case
    x = torch.randn(6, 6, dtype=torch.float64)
    for rotation in (Rotation.over(share, frequencies, channels), Rotation.all_distances(channels)):
        torch.testing.assert_close(rotation.forward(x).trace(), x.trace())
        y = torch.randn(6, 6, dtype=torch.float64)
        torch.testing.assert_close((rotation.forward(x) * y).sum(), (x * rotation.backward(y)).sum())


def test_an_odd_channel_out_stays_where_it_is():
    channels = Channels(7, first=(0, 4), second=(2, 1), free=(3, 5, 6))
    frequencies, share = torch.tensor([0.83, 0.31]).double(), random_distances(1, 3)[0]
    x = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turns = [explicit(channels, frequencies, t) for t in range(len(share))]
    expected = sum(p * r @ x @ r.T for p, r in zip(share, turns, strict=True)) / share.sum()
    torch.testing.assert_close(Rotation.over(share, frequencies, channels).forward(x), expected)
    limit = Rotation.all_distances(channels).forward(x)
    torch.testing.assert_close(
        Rotation.over(torch.ones(40_000), frequencies, channels).forward(x), limit, rtol=0, atol=1e-3
    )
