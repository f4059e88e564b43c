"""The order in which a model runs block by block over some windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gqakit.models.blockwise.blocks import Batch, Blocks


def entering_key(block: int, window: int) -> str:
    """What `stream` calls the hidden states that enter a block."""
    return f"enter-{block:03d}-{window:06d}"


def stream(
    blocks: Blocks,
    batches: Mapping[int, Batch],
    *,
    watch: Callable[[int], AbstractContextManager[Any]] = lambda block: nullcontext(),
    advance: Callable[[int], None] = lambda window: None,
    keep: bool = False,
) -> None:
    """Run all windows through all blocks: each block on every window, then the next block.

    Afterwards `Blocks.leaving` gives what the model gives for a window.

    Args:
        blocks: of the model. batches: arguments of the model, by the number of the window.
        watch: gives a context that each block runs in, by its number.
        advance: called with the window whenever one has left a block.
        keep: leave what entered each block with the states, under `entering_key`, so that blocks can be run again.

    Raises:
        NotByBlocks: the model does more between its blocks than passing hidden states on.
    """
    states = blocks.states
    for number, stage in enumerate(blocks.stages):
        for window, hidden in blocks.entering(number, batches):
            states.put(entering_key(stage.first, window), hidden)
        for index in range(stage.first, stage.first + len(stage.blocks)):
            last = index == stage.first + len(stage.blocks) - 1
            with blocks.block(index) as block, watch(index), torch.no_grad():
                for window in batches:
                    entering = entering_key(index, window)
                    out = block(states.get(entering).to(blocks.device), window)
                    if not keep:
                        states.drop(entering)
                    if last:
                        blocks.end(number, window, out)
                    else:
                        states.put(entering_key(index + 1, window), out)
                    advance(window)
