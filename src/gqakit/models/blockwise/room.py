"""Whether a model's blocks, and what lies beside them, fit into the memory that may be taken."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gqakit.checkpoint import Checkpoint
from gqakit.checkpoint.atomic import output_errors
from gqakit.errors import UsageError
from gqakit.models.blockwise.blocks import Blocks
from gqakit.models.blockwise.states import States
from gqakit.models.memory import in_words
from gqakit.models.running import Running
from gqakit.models.spec import ModelSpec

WIDTHS = 16
"""What a block computes of a position takes about this number of hidden states at a time: MLP, queries, keys, scores."""


class Load(NamedTuple):
    """What running blocks takes besides the weights of one.

    Attributes:
        positions: of the longest window.
        sums: bytes of what is kept of a block besides its weights.
        models: whose blocks are in memory at a time.
    """

    positions: int
    sums: int = 0
    models: int = 1


@contextmanager
def opened_blocks(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    running: Running,
    run: Mapping[str, Any],
    load: Load,
    beside: Path | None = None,
) -> Iterator[Blocks]:
    """A model's blocks, with hidden states in memory as far as it goes and in files beyond that.

    Args:
        checkpoint, spec, running: what runs, and how.
        run: what tells this run's files from others'.
        load: what is in memory at a time.
        beside: the directory that a folder of files is made in while the context lasts; the system's by default.

    Raises:
        UsageError: the memory is too small for one block; says what is needed.
    """
    with output_errors(beside or Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix=".gqakit-hidden-", dir=beside)
    with folder as path:
        blocks = Blocks(checkpoint, spec, running.dtype, running.device)
        weights = load.models * blocks.weights.largest(blocks.modules)
        work = WIDTHS * load.positions * spec.hidden_size * 4
        needed = weights + load.sums + work
        if needed > running.memory:
            named = str(running.dtype).removeprefix("torch.")
            taken = f"what it computes {in_words(work)}, sums {in_words(load.sums)}"
            raise UsageError(
                f"`max_memory={in_words(running.memory)}` is too small for one block of {checkpoint.path} at a time: its "
                f"weights in {named} take {in_words(weights)}, {taken}; "
                f"give at least {in_words(1.05 * needed)}"
                + ("" if running.dtype.itemsize == 2 else ", or `dtype=bfloat16`")
            )
        left = running.host - needed if running.device == "cpu" else running.host
        blocks.states = States(max(0, left), Path(path), run)
        yield blocks
