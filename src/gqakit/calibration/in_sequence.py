"""Calibration block by block: the same sums as of a whole model's forward passes, one block's weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from gqakit.calibration.collect import LayerSums, frequencies, watched
from gqakit.core.statistics import LayerStatistics
from gqakit.data.samples import Batch
from gqakit.models.blockwise.blocks import Blocks
from gqakit.models.blockwise.stream import stream
from gqakit.models.load import use_attention_interface
from gqakit.models.processes import ALONE, Processes

MATRICES = 4
"""Float64 matrices as wide as the model that a layer's sums take at most: two sums, one average, one that is added."""


def collect_in_sequence(
    blocks: Blocks,
    batches: Mapping[int, Batch],
    write: Callable[[int, LayerStatistics], None],
    advance: Callable[[int], None] = lambda window: None,
    processes: Processes = ALONE,
    *,
    keep: bool = False,
) -> None:
    """Calibration statistics of every layer; see `collect_statistics`.

    Args:
        blocks: of the model, with all stacks. batches: its inputs, by the number of the window.
        write: called with each layer and its statistics as soon as they are known, block after block.
        advance: called with the window whenever one has left a block.
        processes: that share the windows.
        keep: see `stream`.

    Raises:
        DataError, FamilyError: see `collect_statistics`. NotByBlocks: see `stream`.
    """
    model, spec = blocks.model, blocks.spec
    use_attention_interface(model, spec)

    @contextmanager
    def watch(block: int) -> Iterator[None]:
        layers = {layer: LayerSums(spec, layer) for layer in blocks.layers_of(block)}
        with watched(model, spec, layers):
            yield
        for layer in sorted(layers):
            write(layer, layers.pop(layer).moments(frequencies(model, spec, layer), processes))

    with watched(model, spec, {}):  # so that masks are made as attention will want them
        stream(blocks, batches, watch=watch, advance=advance, keep=keep)
