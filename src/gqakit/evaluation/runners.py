"""A checkpoint that is scored: as a whole model in memory, or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from gqakit.core.cache_types import CachePair
from gqakit.data.samples import Batch, positions_of
from gqakit.evaluation.cache import bytes_of_cache, measure_cache
from gqakit.models.blockwise.blocks import Blocks
from gqakit.models.blockwise.stream import stream
from gqakit.models.outputs import keeps_logits, predicts_tokens, run
from gqakit.models.spec import ModelSpec

LOGITS = 2**24
"""Logits that are made at a time: 64 MiB of them in float32."""
CACHED = 8
"""Tokens whose cache is measured, block by block: each takes the same."""
MEASURED = -1
"""The number of the window that the cache is measured on."""


class Runner(Protocol):
    """What a checkpoint gives for the windows of some data."""

    @property
    def predicts(self) -> bool:
        """Whether it predicts each token from those before it."""
        ...

    def ready(self) -> AbstractContextManager[None]:
        """The context that everything below is called in."""
        ...

    def run(self, window: int, batch: Batch) -> Any:
        """What the model gives for a window."""
        ...

    def logits(self, window: int, batch: Batch) -> Iterator[Tensor]:
        """Of a language model, the logits `[positions, vocabulary]` of one sequence, some positions at a time."""
        ...

    def cache(self, spec: ModelSpec, batch: Batch, pair: CachePair | None) -> float | None:
        """Bytes that its cache holds for a position; see `bytes_of_cache`."""
        ...


class Whole:
    """A model in memory."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def predicts(self) -> bool:
        """See `Runner`."""
        return predicts_tokens(self.model)

    def ready(self) -> AbstractContextManager[None]:
        """See `Runner`."""
        return nullcontext()

    def run(self, window: int, batch: Batch) -> Any:
        """See `Runner`."""
        return run(self.model, batch)

    def logits(self, window: int, batch: Batch) -> Iterator[Tensor]:
        """See `Runner`."""
        yield from _split(self.run(window, batch).logits[0])

    def cache(self, spec: ModelSpec, batch: Batch, pair: CachePair | None) -> float | None:
        """See `Runner`."""
        return measure_cache(self.model, spec, batch, pair)


class InSequence:
    """A model that runs block by block: what leaves its last block is kept, what follows is made as it is asked for."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.model = blocks, blocks.model
        self._measured: Batch | None = None

    def pass_through(self, batches: Mapping[int, Batch], advance: Callable[[int], None]) -> None:
        """Run all blocks on some windows; `advance` hears of the positions that have left each block."""
        every = dict(batches)
        if self.blocks.spec.is_cached and batches:
            first = next(iter(batches.values()))
            short = {
                n: v[:, :CACHED] if n.endswith("input_ids") and v.ndim == 2 else v for n, v in first.items()
            }
            every[MEASURED] = {**short, "use_cache": True}
        self._measured = every.get(MEASURED)
        stream(self.blocks, every, advance=lambda n: advance(positions_of(batches[n]) if n in batches else 0))

    @property
    def predicts(self) -> bool:
        """See `Runner`."""
        return predicts_tokens(self.model)

    def ready(self) -> AbstractContextManager[None]:
        """See `Runner`: the weights around the blocks."""
        return self.blocks.around()

    def run(self, window: int, batch: Batch, **more: Any) -> Any:
        """See `Runner`."""
        return self.blocks.leaving(window, batch, **more)

    def logits(self, window: int, batch: Batch) -> Iterator[Tensor]:
        """See `Runner`."""
        head: Any = self.model.get_output_embeddings()
        if not keeps_logits(self.model, 1) or "input_ids" not in batch:
            yield from _split(self.run(window, batch).logits[0])
            return
        length = batch["input_ids"].shape[1]
        for positions in torch.arange(length, device=self.blocks.device).split(
            _positions(head.weight.shape[0])
        ):
            yield self.run(window, batch, **keeps_logits(self.model, positions)).logits[0]

    def cache(self, spec: ModelSpec, batch: Batch, pair: CachePair | None) -> float | None:
        """See `Runner`."""
        if self._measured is None:
            return None
        made = getattr(self.run(MEASURED, self._measured), "past_key_values", None)
        calls = (self.blocks.call(block, MEASURED).leaves for block in range(self.blocks.count))
        kept = next((leaf for leaves in calls for leaf in leaves if isinstance(leaf, Cache)), None)
        return None if made is None or kept is None else bytes_of_cache(kept, spec, pair)


class Remembered:
    """A runner that runs each window once, as long as there is room for its logits.

    Args:
        runner: what runs. room: bytes of main memory that logits may take.
    """

    def __init__(self, runner: Runner, room: int) -> None:
        self.runner, self.room = runner, room
        self.known: dict[int, list[Tensor]] = {}
        self.device = torch.device("cpu")

    @property
    def predicts(self) -> bool:
        """See `Runner`."""
        return self.runner.predicts

    def ready(self) -> AbstractContextManager[None]:
        """See `Runner`."""
        return self.runner.ready()

    def run(self, window: int, batch: Batch) -> Any:
        """See `Runner`."""
        return self.runner.run(window, batch)

    def logits(self, window: int, batch: Batch) -> Iterator[Tensor]:
        """See `Runner`."""
        if window in self.known:
            yield from (each.to(self.device) for each in self.known[window])
            return
        made: list[Tensor] = []
        for each in self.runner.logits(window, batch):
            self.device = each.device
            made.append(each.cpu())
            yield each
        size = sum(each.nbytes for each in made)
        if size <= self.room:
            self.room -= size
            self.known[window] = made

    def cache(self, spec: ModelSpec, batch: Batch, pair: CachePair | None) -> float | None:
        """See `Runner`."""
        return self.runner.cache(spec, batch, pair)


def _positions(vocabulary: int) -> int:
    """The number of positions that logits are made of at a time."""
    return max(1, LOGITS // vocabulary)


def as_runner(model: nn.Module | Runner) -> Runner:
    """A model as a runner, or the runner that it is."""
    return Whole(model) if isinstance(model, nn.Module) else model


def _split(logits: Tensor) -> Iterator[Tensor]:
    yield from logits.split(_positions(logits.shape[-1]))
