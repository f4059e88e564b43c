"""The blocks of a model, of which one at a time has weights, and the model around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from gqakit.checkpoint import Checkpoint
from gqakit.models.blockwise.calls import Call, FromBefore, Kept, NotByBlocks, Shape, Shared, parts
from gqakit.models.blockwise.states import States
from gqakit.models.blockwise.weights import Weights
from gqakit.models.spec import ModelSpec

Batch = Mapping[str, Any]
"""Keyword arguments of one forward pass of the model."""


@dataclass
class Stage:
    """Blocks of which each takes what the one before it gives: a decoder's, or an encoder's.

    Attributes:
        blocks: the modules in order. first: the number of blocks in the stages before.
        shape: what they return, once one has run.
        ended: whether all of them have run, so that what leaves them is known.
    """

    blocks: list[nn.Module]
    first: int
    shape: Shape | None = None
    ended: bool = False


_TOWERS = "its towers do not run one after another"
_AROUND = "its layers beside the blocks keep tensors that no file holds under their names"
RUN_WHOLE = {
    **{"clip": _TOWERS, "siglip": _TOWERS},
    **{"siglip_vision_model": _AROUND, "idefics3": _AROUND, "marian": _AROUND},
    **{
        "wav2vec2": "its head is not found beside its blocks",
        "hubert": "its head is not found beside its blocks",
    },
}
"""Families that are not run block by block, and why."""


class Blocks:
    """The blocks of a checkpoint. In memory are one block's weights, or those around the blocks while they are needed.

    Windows are numbered; a block can run on a window once `entering` has seen it. See `stream` for the order.

    Args:
        checkpoint: stock or grouped.
        spec: with the attention layers of all stacks; that of the source holds for what was made of it too.
        dtype, device: that it runs in and on.
        states: where what leaves an encoder is kept, and whatever else each window has for itself.

    Raises:
        CheckpointError: transformers refuses it, or tensors are missing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        states: States | None = None,
    ) -> None:
        reason = RUN_WHOLE.get(spec.family.model_type)
        if reason is not None:
            raise NotByBlocks(reason)
        self.spec, self.device = spec, device
        self.weights = Weights(checkpoint, dtype, device)
        self.model = self.weights.model
        self.states = States() if states is None else states
        self._shared = Shared()
        self._calls: dict[tuple[int, int], Call] = {}  # of a block and a window
        self._rest: dict[int, tuple[Any, ...]] = {}  # what a window's last block gave besides hidden states
        self.stages: list[Stage] = []
        of_path: dict[str, dict[int, nn.Module]] = {}
        for layer, (stack, index) in enumerate(spec.sites):
            of_path.setdefault(stack.block, {})[index] = spec.block(self.model, layer)
        for found in of_path.values():
            self.stages.append(Stage([found[i] for i in sorted(found)], self.count))
        self.forwards = {block: block.forward for block in self.modules}

    @property
    def modules(self) -> list[nn.Module]:
        """The blocks of all stages, in order."""
        return [block for stage in self.stages for block in stage.blocks]

    @property
    def count(self) -> int:
        """Number of blocks, of all stages."""
        return sum(len(stage.blocks) for stage in self.stages)

    def layers_of(self, block: int) -> list[int]:
        """The attention layers in a block, as the spec counts them."""
        module = self.modules[block]
        return [n for n in range(self.spec.num_layers) if self.spec.block(self.model, n) is module]

    def stage_of(self, block: int) -> Stage:
        """The stage that a block belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first <= block)

    def entering(self, stage: int, batches: Mapping[int, Batch]) -> Iterator[tuple[int, Tensor]]:
        """What enters the first block of a stage, for each window; notes how its blocks are called.

        Args:
            stage: its number; all before it must have ended.
            batches: arguments of the model, by the number of the window.

        Raises:
            NotByBlocks: the model does more between its blocks than passing hidden states on.
        """
        with torch.no_grad(), self.around():
            for window, batch in batches.items():
                entry = _Entry(self, self.stages[stage], window)
                own = {block: partial(entry.called, i) for i, block in enumerate(self.stages[stage].blocks)}
                later = dict.fromkeys(self.modules, _too_early)
                with _replaced_forwards({**later, **self._ended(window), **own}), suppress(_Stopped):
                    self.model(**self._on_device(batch))
                for position, call in enumerate(entry.calls):
                    self._calls[self.stages[stage].first + position, window] = call
                yield window, entry.hidden()

    def leaving(self, window: int, batch: Batch, **more: Any) -> Any:
        """What the model gives for a window once all stages have ended; only within `around`.

        Args:
            window: its number. batch: what it was entered with. more: further arguments of the model.
        """
        with torch.no_grad(), _replaced_forwards(self._ended(window)):
            return self.model(**{**self._on_device(batch), **more})

    def gradient_of(self, window: int, batch: Batch, score: Callable[[Any], Tensor]) -> Tensor:
        """The gradient of a scalar at what leaves the last block, once all stages have ended; only within `around`.

        Args:
            window: its number. batch: what it was entered with.
            score: makes the scalar of what the model gives.
        """
        stage = self.stages[-1]
        assert stage.shape is not None
        hidden = self.states.get(f"final-{len(self.stages) - 1}-{window:06d}").to(self.device).clone()
        output = stage.shape.output(hidden.requires_grad_(), hidden.new_empty(0))
        last = dict.fromkeys(stage.blocks, partial(_constant, output))
        with torch.enable_grad(), _replaced_forwards({**self._ended(window), **last}):
            (gradient,) = torch.autograd.grad(score(self.model(**self._on_device(batch))), hidden)
        return gradient

    @contextmanager
    def around(self) -> Iterator[None]:
        """The weights around the blocks, each from when it is first needed until the context ends."""
        with self.weights.filled_when_called(self.modules):
            yield

    @contextmanager
    def block(self, block: int) -> Iterator[Block]:
        """One block with its weights; they go when the context ends."""
        module = self.modules[block]
        with self.weights.filled(module):
            yield Block(self, block, module)

    def end(self, stage: int, window: int, hidden: Tensor) -> None:
        """Note what leaves the last block of a stage for a window."""
        self.states.put(f"final-{stage}-{window:06d}", hidden)
        self.stages[stage].ended = True

    def call(self, block: int, window: int) -> Call:
        """What a block is called with for a window, besides hidden states."""
        rest = self._rest.get(window, ())
        # Noted again, so that the block can be run once more after others have been.
        self._calls[block, window] = self._calls[block, window].mapped(
            lambda i, leaf: rest[leaf.output] if isinstance(leaf, FromBefore) else leaf
        )
        return self._calls[block, window].mapped(
            lambda i, leaf: self.states.get(leaf.key).to(self.device) if isinstance(leaf, Kept) else leaf
        )

    def ran(self, block: int, window: int, output: Any) -> Tensor:
        """Take up what a block gave for a window; returns the hidden states."""
        stage, shape = self.stage_of(block), Shape.of(output)
        stage.shape = stage.shape or shape
        if stage.shape != shape:
            raise NotByBlocks(f"block {block} returns other things than the blocks before it")
        hidden, rest = parts(output)
        self._rest[window] = tuple(
            self._shared.kept((stage.first, "rest", i), each) for i, each in enumerate(rest)
        )
        return hidden

    def share(self, stage: Stage, window: int, index: int, leaf: Tensor) -> Any:
        """A tensor that blocks are called with, kept once for all windows; with the states where each window has its own."""
        place = (stage.first, index)
        alone = leaf.is_floating_point() and leaf.ndim == 3 and leaf.shape[-1] == self.spec.hidden_size
        if not alone:
            return self._shared.kept(place, leaf)
        kept = Kept(f"call-{stage.first:03d}-{index:02d}-{window:06d}")
        self.states.put(kept.key, leaf)
        return kept

    def _ended(self, window: int) -> dict[nn.Module, Any]:
        """Forward functions for the blocks of stages that have ended: each gives what the last one gave."""
        found: dict[nn.Module, Any] = {}
        for number, stage in enumerate(self.stages):
            if stage.ended and stage.shape is not None:
                hidden = self.states.get(f"final-{number}-{window:06d}").to(self.device)
                output = stage.shape.output(hidden, hidden.new_empty(0))
                found |= dict.fromkeys(stage.blocks, partial(_constant, output))
        return found

    def _on_device(self, batch: Batch) -> dict[str, Any]:
        return {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in batch.items()}


@dataclass(frozen=True)
class Block:
    """One block with its weights.

    Attributes:
        blocks: that it is one of. index: which. module: transformers' own.
    """

    blocks: Blocks
    index: int
    module: nn.Module

    def __call__(self, hidden: Tensor, window: int) -> Tensor:
        """What leaves the block for a window. A function of `hidden` alone, so it can be repeated and differentiated."""
        version = hidden._version
        output = self.blocks.call(self.index, window).on(self.module, hidden)
        if hidden._version != version:
            raise NotByBlocks("a block changes the hidden states that it is given")
        return self.blocks.ran(self.index, window, output)


class _Entry:
    """One forward pass up to the last block of a stage, of which no block computes anything.

    Each gives NaN in place of hidden states. So one can see whether the next one gets just these, and whether anything
    else that it gets is made of them.
    """

    def __init__(self, blocks: Blocks, stage: Stage, window: int) -> None:
        self._blocks, self._stage, self._window = blocks, stage, window
        self._first: Tensor | None = None
        self._blank: Tensor | None = None
        self._noted: dict[int, Any] = {}  # what is noted for a tensor, by its identity
        self._alive: list[Any] = []  # so that no identity is used twice
        self.calls: list[Call] = []

    def hidden(self) -> Tensor:
        """What entered the first block."""
        if self._first is None or len(self.calls) != len(self._stage.blocks):
            raise NotByBlocks(f"{len(self.calls)} of its {len(self._stage.blocks)} blocks ran")
        return self._first

    def called(self, position: int, *args: Any, **kwargs: Any) -> Any:
        """Stands for the forward pass of a block."""
        hidden, call = Call.of(args, kwargs)
        if position != len(self.calls):
            raise NotByBlocks("its blocks do not run one after another")
        if position == 0:
            self._first = hidden
        elif hidden is not self._blank or hidden._version:
            raise NotByBlocks("it changes hidden states between its blocks")
        self._alive.append(call)
        self.calls.append(call.mapped(self._note))
        if position == len(self._stage.blocks) - 1:
            raise _Stopped
        if self._stage.shape is None:
            module = self._stage.blocks[0]
            with self._blocks.weights.filled(module):
                once = call.mapped(
                    lambda i, leaf: None if isinstance(leaf, Cache) else leaf
                )  # it is filled later
                self._stage.shape = Shape.of(once.on(self._blocks.forwards[module], hidden))
        self._blank = torch.full_like(hidden, torch.nan)
        output = self._stage.shape.output(self._blank, torch.full((), torch.nan))
        if isinstance(output, tuple):
            self._noted |= {id(each): FromBefore(i) for i, each in enumerate(output[1:]) if each is not None}
            self._alive.append(output)
        return output

    def _note(self, index: int, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._noted:
            if leaf.is_floating_point() and bool(leaf.isnan().any()):
                raise NotByBlocks("it makes more of what leaves a block than the next block's hidden states")
            self._noted[id(leaf)] = self._blocks.share(self._stage, self._window, index, leaf)
        return self._noted[id(leaf)]


class _Stopped(Exception):  # noqa: N818  # control flow, never seen outside
    """Ends a forward pass once what was asked for is known."""


def _too_early(*args: Any, **kwargs: Any) -> Any:
    raise NotByBlocks("its encoders and decoders do not run one after another in the order that is known")


def _constant(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output


@contextmanager
def _replaced_forwards(forwards: Mapping[nn.Module, Any]) -> Iterator[None]:
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            del module.forward
            if before is not None:
                module.forward = before
