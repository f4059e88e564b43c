"""What a repair needs of a block besides running it: what attention puts out, and its projections to be fitted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gqakit.checkpoint import Checkpoint
from gqakit.core.cache_types import CachePair
from gqakit.models.blockwise.blocks import Block, Blocks
from gqakit.models.blockwise.calls import parts
from gqakit.models.families.base import ROLES
from gqakit.models.rounding import rounded_cache
from gqakit.models.spec import ModelSpec


@dataclass(frozen=True)
class RepairBlock:
    """One block with its weights. It runs one window at a time: all are of one length, so masks and positions are one's.

    Attributes:
        block: that runs. attention: the attention module in it.
        projections: weights and biases of q, k, v and o, and maps behind normalisations, by the
            checkpoint's names.
        dtype: that products are computed in.
    """

    block: Block
    attention: nn.Module
    projections: dict[str, nn.Parameter]
    dtype: torch.dtype = torch.float32

    def run(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What attention puts out, and what leaves the block; both as `hidden`, `[1, T, D]`."""
        outputs: list[Tensor] = []
        with _hook(self.attention, lambda module, args, output: outputs.append(parts(output)[0])):
            out = self._out(hidden)
        return outputs[0].float(), out

    def attend(self, hidden: Tensor) -> Tensor:
        """What attention puts out; the rest of the block is not run."""
        outputs: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(parts(output)[0])
            raise _Stopped

        with _hook(self.attention, stop), suppress(_Stopped):
            self._out(hidden)
        return outputs[0].float()

    def _out(self, hidden: Tensor) -> Tensor:
        """What leaves the block. Its weights and the stream are in float32, whatever the products are computed in."""
        with torch.autocast(hidden.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.block(hidden, 0).float()

    def adds_attention(self, hidden: Tensor) -> bool:
        """Whether the block adds the attention's output to the stream as it is, and goes on from the sum.

        Not so where the output is normalised first, or where attention and MLP run side by side. The sum is looked
        for among the inputs of the modules in the block.
        """
        inputs: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.extend(arg for arg in args[:1] if isinstance(arg, Tensor))

        handles = [child.register_forward_pre_hook(look) for child in self.block.module.children()]
        try:
            added, _ = self.run(hidden)
        finally:
            for handle in handles:
                handle.remove()
        if added.shape != hidden.shape:
            return False
        stream = hidden + added
        alike = (each.reshape(stream.shape) for each in inputs if each.numel() == stream.numel())
        return any(torch.allclose(each, stream, rtol=1e-4) for each in alike)


class RepairBlocks:
    """The blocks of a language model, in float32. Memory is one block, or the embeddings while `entering` runs.

    Args:
        checkpoint: of a language model, stock or grouped.
        spec: of the source; its module paths hold for what was made of it too.
        device: that it runs on. dtype: that products are computed in.
        pair: the types of a cache that its keys and values go through; None rounds nothing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        device: str,
        dtype: torch.dtype = torch.float32,
        pair: CachePair | None = None,
    ) -> None:
        self._spec, self._dtype, self._pair = spec, dtype, pair
        self._blocks = Blocks(checkpoint, spec, torch.float32, device)

    def entering(self, windows: Tensor) -> Iterator[Tensor]:
        """What enters the first block, `[1, T, D]` for each window. Only after this `block` can be used."""
        batches = {n: {"input_ids": window[None], "use_cache": False} for n, window in enumerate(windows)}
        return (hidden for _, hidden in self._blocks.entering(0, batches))

    @contextmanager
    def block(self, layer: int) -> Iterator[RepairBlock]:
        """One block; its weights go when the context ends."""
        with (
            self._blocks.block(layer) as block,
            rounded_cache(self._blocks.model, self._spec, self._pair, (layer,)),
        ):
            attention = self._spec.attention_module(self._blocks.model, layer)
            yield RepairBlock(block, attention, self._projections(layer), self._dtype)

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
