"""Which channels form pairs and which mix."""

import pytest

from gqakit.core.rope import Channels


def test_rotary_layouts():
    half = Channels.rotary(8)
    assert (half.first, half.second, half.free) == ((0, 1, 2, 3), (4, 5, 6, 7), ())
    interleaved = Channels.rotary(8, layout="interleaved")
    assert (interleaved.first, interleaved.second) == ((0, 2, 4, 6), (1, 3, 5, 7))


def test_partial_rotary():
    half, interleaved = Channels.rotary(8, 4), Channels.rotary(8, 4, "interleaved")
    assert (half.first, half.second, half.free) == ((0, 1), (2, 3), (4, 5, 6, 7))
    assert (interleaved.first, interleaved.second, interleaved.free) == ((0, 2), (1, 3), (4, 5, 6, 7))
    assert Channels.rotary(4, 0) == Channels.mixing(4)


def test_without_rotation():
    assert Channels.mixing(3).free == (0, 1, 2)
    assert Channels.normalised(3).locked


@pytest.mark.parametrize("width", [3, 10, -2])
def test_rotary_width_that_does_not_fit(width):
    with pytest.raises(ValueError, match=f"rotary width {width} does not fit a head of 8"):
        Channels.rotary(8, width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": (0,), "second": (1,)}, "do not cover"),
        ({"first": (0, 1), "second": (1, 2), "free": (3,)}, "do not cover"),
        ({"first": (0, 1, 2), "second": (3,)}, "two channels"),
        ({"free": (0, 1, 2, 3), "locked": True}, "locked head"),
    ],
)
def test_channels_that_contradict_each_other(arguments, message):
    with pytest.raises(ValueError, match=message):
        Channels(4, **arguments)
