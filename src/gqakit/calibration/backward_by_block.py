"""The backward pass of a model that need not fit: one block at a time has weights, and is run again and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gqakit.calibration.backward import reporting
from gqakit.calibration.gradient_sums import GradientSums
from gqakit.calibration.sampled_output import sampled_score
from gqakit.core.gradients import LayerGradients
from gqakit.models.blockwise.blocks import Batch, Blocks
from gqakit.models.blockwise.calls import NotByBlocks
from gqakit.models.blockwise.stream import entering_key
from gqakit.models.outputs import Output
from gqakit.models.processes import ALONE, Processes


def collect_gradients_by_block(
    blocks: Blocks,
    batches: Mapping[int, Batch],
    write: Callable[[int, LayerGradients], None],
    advance: Callable[[int], None] = lambda window: None,
    processes: Processes = ALONE,
    *,
    seed: int = 0,
) -> None:
    """What `collect_gradients` gives, from hidden states that a forward pass kept at the boundaries of blocks.

    Args:
        blocks: after `stream(…, keep=True)` over the same batches.
        batches: by the number of the window.
        write: takes each layer's gradients as soon as they are complete, the last layer's first; nothing else keeps them.
        advance: called with the window whenever a gradient has passed a block.
        processes: that share the input; each draws for itself, and gets the sums over all of it.
        seed: of what is drawn from the model's output; window `n` draws as batch `n` of the whole model does.

    Raises:
        DataError: a gradient is not finite; names the layer.
        NotByBlocks: the model has an encoder besides its decoder, whose gradient comes by way of every decoder block.
    """
    if len(blocks.stages) != 1:
        raise NotByBlocks("gradients pass from its decoder's blocks to its encoder's")
    spec, states = blocks.spec, blocks.states
    with blocks.around():
        for window, batch in batches.items():
            rng = torch.Generator().manual_seed(seed + window + (processes.rank << 24))

            def score(made: object, rng: torch.Generator = rng) -> Tensor:
                return sampled_score(Output.of(made), rng)

            states.put(_key(window), blocks.gradient_of(window, batch, score))
    for index in reversed(range(blocks.count)):
        sums = {layer: GradientSums(spec, layer) for layer in blocks.layers_of(index)}
        with blocks.block(index) as block, reporting(blocks.model, spec, sums), torch.enable_grad():
            for window in batches:
                hidden = states.get(entering_key(index, window)).to(blocks.device).clone().requires_grad_()
                leaving = states.get(_key(window)).to(blocks.device)
                (entering,) = torch.autograd.grad(block(hidden, window), hidden, leaving)
                states.put(_key(window), entering)
                states.drop(entering_key(index, window))
                advance(window)
        for layer in sorted(sums, reverse=True):
            write(layer, sums[layer].gradients(processes))
    for window in batches:
        states.drop(_key(window))


def _key(window: int) -> str:
    return f"gradient-{window:06d}"
