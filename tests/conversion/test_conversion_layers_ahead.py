"""Layers made ahead of the writer: the next one while the last one is written, and errors where they are asked for."""

import threading
from typing import Any, cast

import pytest
import torch

from gqakit.conversion.layers_ahead import LayersAhead

WAIT = 30


class Made:
    """Stands for a reader; remembers which layers were made and when they were waited for."""

    def __init__(self, fails=()):
        self.done = {layer: threading.Event() for layer in range(4)}
        self.times, self.fails = dict.fromkeys(range(4), 0), fails

    def make(self, read, plan, layer):
        assert (read, plan) == (self, "plan")
        if layer in self.fails:
            raise ArithmeticError(f"layer {layer}")
        self.times[layer] += 1
        self.done[layer].set()
        return {"name": torch.tensor(layer)}


def test_the_next_layer_is_made_while_one_is_written():
    made = Made()
    with LayersAhead(cast(Any, made), cast(Any, "plan"), made.make, [2, 0, 3], 1) as converted:
        assert converted(2)["name"] == 2
        assert made.done[0].wait(WAIT), "nobody asked for it yet"
        assert not made.done[3].is_set(), "one ahead, no more"
        assert converted(2)["name"] == 2
        assert converted(0)["name"] == 0
        assert converted(3)["name"] == 3
    assert made.times == {0: 1, 1: 0, 2: 1, 3: 1}


def test_an_error_is_raised_where_its_layer_is_asked_for():
    made = Made(fails=(1,))
    with LayersAhead(cast(Any, made), cast(Any, "plan"), made.make, [0, 1], 1) as converted:
        converted(0)
        with pytest.raises(ArithmeticError, match="layer 1"):
            converted(1)
