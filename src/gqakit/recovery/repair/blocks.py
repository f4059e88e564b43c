"""What a repair needs of a block besides running it: what attention puts out, and its projections to be fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gqakit.checkpoint import Checkpoint
from gqakit.core.cache_types import CachePair
from gqakit.data.samples import Batch
from gqakit.models.blockwise.blocks import Block, Blocks, Stage
from gqakit.models.blockwise.calls import parts
from gqakit.models.blockwise.states import States
from gqakit.models.blockwise.stream import entering_key
from gqakit.models.families.base import ROLES
from gqakit.models.rounding import rounded_cache
from gqakit.models.spec import ModelSpec


@dataclass(frozen=True)
class RepairBlock:
    """One block with its weights.

    Attributes:
        block: that runs. attention: the attention module in it; None where it has several, as a decoder with an encoder.
        projections: weights and biases of q, k, v and o of the attention to fit, and maps behind normalisations, by the
            checkpoint's names.
        dtype: that products are computed in.
    """

    block: Block
    attention: nn.Module | None
    projections: dict[str, nn.Parameter]
    dtype: torch.dtype = torch.float32

    def run(self, hidden: Tensor, window: int = 0) -> tuple[Tensor | None, Tensor]:
        """What attention puts out, where the block has one, and what leaves the block; both as `hidden`, `[B, T, D]`."""
        if self.attention is None:
            return None, self._out(hidden, window)
        outputs: list[Tensor] = []
        with _hook(self.attention, lambda module, args, output: outputs.append(parts(output)[0])):
            out = self._out(hidden, window)
        return outputs[0].float(), out

    def attend(self, hidden: Tensor, window: int = 0) -> Tensor:
        """What attention puts out, of a block that has one; the rest of the block is not run."""
        assert self.attention is not None
        outputs: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(parts(output)[0])
            raise _Stopped

        with _hook(self.attention, stop), suppress(_Stopped):
            self._out(hidden, window)
        return outputs[0].float()

    def _out(self, hidden: Tensor, window: int) -> Tensor:
        """What leaves the block. Its weights and the stream are in float32, whatever the products are computed in."""
        with torch.autocast(hidden.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.block(hidden, window).float()

    def adds_attention(self, hidden: Tensor, window: int = 0) -> bool:
        """Whether the block adds the output of its one attention to the stream as it is, and goes on from the sum.

        Not so where the output is normalised first, or where attention and MLP run side by side. The sum is looked
        for among the inputs of the modules in the block.
        """
        inputs: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.extend(arg for arg in args[:1] if isinstance(arg, Tensor))

        handles = [child.register_forward_pre_hook(look) for child in self.block.module.children()]
        try:
            added, _ = self.run(hidden, window)
        finally:
            for handle in handles:
                handle.remove()
        if added is None or added.shape != hidden.shape:
            return False
        stream = hidden + added
        alike = (each.reshape(stream.shape) for each in inputs if each.numel() == stream.numel())
        return any(torch.allclose(each, stream, rtol=1e-4) for each in alike)


class RepairBlocks:
    """The blocks of a model, in float32. Memory is one block, or the embeddings while `entering` runs.

    Args:
        checkpoint: stock or grouped.
        spec: of the source, with all stacks; its module paths hold for what was made of it too.
        device: that it runs on. dtype: that products are computed in.
        pair: the types of a cache that its keys and values go through; None rounds nothing.
        states: where hidden states are kept.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        device: str,
        dtype: torch.dtype = torch.float32,
        pair: CachePair | None = None,
        states: States | None = None,
    ) -> None:
        self._spec, self._dtype, self._pair = spec, dtype, pair
        self._blocks = Blocks(checkpoint, spec, torch.float32, device, states)
        self.states = self._blocks.states

    @property
    def stages(self) -> list[Stage]:
        """See `Blocks`."""
        return self._blocks.stages

    def layers_of(self, block: int) -> list[int]:
        """The attention layers in a block, as the spec counts them."""
        return self._blocks.layers_of(block)

    def entering(self, stage: int, batches: Mapping[int, Batch]) -> Iterator[tuple[int, Tensor]]:
        """What enters the first block of a stage, `[B, T, D]`, by window. Only after this its blocks can be used."""
        return self._blocks.entering(stage, batches)

    def leave(self, block: int, window: int, hidden: Tensor) -> None:
        """Keep what leaves a block for what comes after it."""
        stage = self._blocks.stage_of(block)
        if block == stage.first + len(stage.blocks) - 1:
            self._blocks.end(self.stages.index(stage), window, hidden)
        else:
            self.states.put(entering_key(block + 1, window), hidden)

    @contextmanager
    def block(self, block: int, fitted: Sequence[int] | None = None) -> Iterator[RepairBlock]:
        """One block; its weights go when the context ends.

        Args:
            block: its number.
            fitted: the attention layers in it whose projections are wanted; all by default.
        """
        layers = self.layers_of(block)
        with (
            self._blocks.block(block) as running,
            rounded_cache(self._blocks.model, self._spec, self._pair, self._cached(layers)),
        ):
            alone = len(layers) == 1
            attention = self._spec.attention_module(self._blocks.model, layers[0]) if alone else None
            wanted = layers if fitted is None else fitted
            projections = {name: p for layer in wanted for name, p in self._projections(layer).items()}
            yield RepairBlock(running, attention, projections, self._dtype)

    def _cached(self, layers: Sequence[int]) -> list[int]:
        return [layer for layer in layers if self._spec.sites[layer].stack.cached]

    def _projections(self, layer: int) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for role in ROLES:
            module = self._spec.projection(self._blocks.model, layer, role)
            for kind, parameter in module.named_parameters(recurse=False):
                found[self._spec.tensor(layer, role, kind)] = parameter
        normed = self._spec.behind_norm is not None  # some models of a family have its norms, some do not
        for norm in self._spec.norms if normed else ():
            module = self._spec.norm(self._blocks.model, layer, norm)
            if hasattr(module, "maps"):
                found[self._spec.maps(layer, norm)] = module.get_parameter("maps")
        return found


class _Stopped(Exception):  # noqa: N818  # control flow, never seen outside
    """Ends a forward pass once what was asked for is known."""


@contextmanager
def _hook(module: nn.Module, function: Any) -> Iterator[None]:
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()
