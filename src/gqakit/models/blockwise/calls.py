"""What a model passes to its blocks besides hidden states: masks, positions, an encoder's output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import Cache

from gqakit.errors import GqakitError


class NotByBlocks(GqakitError):  # noqa: N818  # a model is run whole then, so it is seldom an error
    """A model that cannot be run block by block: what it does between its blocks is more than passing hidden states on."""


@dataclass(frozen=True)
class Call:
    """One call of a block without its hidden states.

    Attributes:
        leaves: the arguments, flattened. layout: how to put them together again.
        by_name: whether the hidden states are the argument `hidden_states` and not the first one.
    """

    leaves: tuple[Any, ...]
    layout: Any
    by_name: bool

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Call]:
        """The hidden states that a block was called with, and the rest of the call."""
        by_name, kwargs = not args, dict(kwargs)
        hidden = kwargs.pop("hidden_states") if by_name else args[0]
        # A cache stays whole, also where an exporter has registered it with torch, which then takes it apart.
        leaves, layout = tree_flatten((args[1:], kwargs), is_leaf=lambda part: isinstance(part, Cache))
        return hidden, cls(tuple(leaves), layout, by_name)

    def mapped(self, function: Callable[[int, Any], Any]) -> Call:
        """The call with every leaf replaced by what a function makes of its index and itself."""
        return Call(tuple(function(i, leaf) for i, leaf in enumerate(self.leaves)), self.layout, self.by_name)

    def on(self, module: Any, hidden: Tensor) -> Any:
        """What a block gives for hidden states and this call."""
        args, kwargs = tree_unflatten(list(self.leaves), self.layout)
        return (
            module(*args, hidden_states=hidden, **kwargs) if self.by_name else module(hidden, *args, **kwargs)
        )


@dataclass(frozen=True)
class FromBefore:
    """Stands in a call for an output of the block before, such as a position bias that the first block makes."""

    output: int


@dataclass(frozen=True)
class Kept:
    """Stands in a call for a tensor that lies with the hidden states."""

    key: str


class Shared:
    """Keeps one copy of tensors that come again and again: masks and positions of windows of one length."""

    def __init__(self) -> None:
        self._known: dict[Any, list[Tensor]] = defaultdict(list)

    def kept(self, place: Any, leaf: Any) -> Any:
        """A tensor, or the equal one that came at this place before; anything else as it is."""
        if not isinstance(leaf, Tensor):
            return leaf
        leaf, known = leaf.detach(), self._known[place]
        for other in known:
            if other.shape == leaf.shape and other.dtype == leaf.dtype and torch.equal(other, leaf):
                return other
        known.append(leaf)
        return leaf


@dataclass(frozen=True)
class Shape:
    """What a block returns: hidden states alone, or a tuple of which they are the first.

    Attributes:
        tensors: of a tuple, for each element after the first whether it is a tensor; None for hidden states alone.
    """

    tensors: tuple[bool, ...] | None

    @classmethod
    def of(cls, output: Any) -> Shape:
        """Of what a block returned."""
        if isinstance(output, Tensor):
            return cls(None)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return cls(tuple(isinstance(each, Tensor) for each in output[1:]))
        raise NotByBlocks(f"a block returns {type(output).__name__}")

    def output(self, hidden: Tensor, mark: Tensor) -> Any:
        """Hidden states as a block returns them, with copies of a mark for what else it returns."""
        if self.tensors is None:
            return hidden
        return (hidden, *(mark.clone() if is_tensor else None for is_tensor in self.tensors))


def parts(output: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """Hidden states, and what a block returns besides."""
    return (output[0], tuple(output[1:])) if isinstance(output, tuple) else (output, ())
