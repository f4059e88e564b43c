"""Work on layers, shared by several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from gqakit.calibration.store import StatisticsFile
from gqakit.core.grouping import Grouping
from gqakit.errors import GqakitError
from gqakit.models.source import Source
from gqakit.planning.layer_features import LayerReader

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Processes that start fresh and do what they are sent. Left by an error or an interruption, they are ended at once.

    Each has its share of this process's threads, so that several do not fight over the processors.

    Args:
        count: how many.
        start: called once in each, with what is `given`; all of it can be sent there.
        holds: what each keeps in memory, for the error that says one died.
    """

    def __init__(self, count: int, start: Callable[..., None], given: tuple[Any, ...], holds: str) -> None:
        self.count, self._holds = count, holds
        self._others = {child.pid for child in multiprocessing.active_children()}
        threads = max(1, torch.get_num_threads() // count)
        context = multiprocessing.get_context("spawn")  # a forked torch may hang
        self._pool = ProcessPoolExecutor(count, context, _begin, (threads, start, given))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for child in multiprocessing.active_children():
                if child.pid not in self._others:
                    child.terminate()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Result], *given: Any) -> Future[Result]:
        """Have one of them call a function of a module."""
        try:
            return self._pool.submit(function, *given)
        except BrokenProcessPool as error:
            raise self._died() from error

    def result(self, future: Future[Result]) -> Result:
        """What was found; errors of a worker are raised here.

        Raises:
            GqakitError: a worker died.
        """
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._died() from error

    def _died(self) -> GqakitError:
        return GqakitError(
            f"one of {self.count} worker processes died, probably for want of memory (each holds {self._holds}): run again "
            "with fewer `workers`"
        )


def _begin(threads: int, start: Callable[..., None], given: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole group; the first process ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    start(*given)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class LayerFiles:
    """Where the layers of a source are read from, for a process that has none yet."""

    model: Path
    statistics: Path | None
    stacks: tuple[str, ...]
    behind_norm: bool
    groupings: Sequence[Grouping] | None

    @classmethod
    def of(cls, read: LayerReader) -> LayerFiles:
        """The files of a reader."""
        statistics = None if read.statistics is None else read.statistics.path
        return cls(read.source.path, statistics, read.source.spec.stacks, read.behind_norm, read.groupings)

    def reader(self) -> LayerReader:
        """A reader of them."""
        statistics = StatisticsFile.open(self.statistics) if self.statistics else None
        source = Source.open(self.model, self.stacks)
        return LayerReader(source, statistics, behind_norm=self.behind_norm, groupings=self.groupings)


def on_layers(read: LayerReader, count: int) -> Workers:
    """Processes that read layers for themselves; `in_worker` is what they call."""
    return Workers(count, _open, (LayerFiles.of(read),), "a layer with its statistics")


def each(
    read: LayerReader, function: Callable[[LayerReader, Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """`function(read, item)` for each item, in their order: here, or in several processes, with the same results."""
    if min(workers, len(items)) < 2:
        yield from (function(read, item) for item in items)
        return
    with on_layers(read, min(workers, len(items))) as pool:
        pending = [pool.submit(in_worker, function, item) for item in items]
        for future in pending:
            yield pool.result(future)


_read: LayerReader | None = None
"""The reader of a worker process."""


def _open(files: LayerFiles) -> None:
    global _read
    _read = files.reader()


def in_worker(function: Callable[[LayerReader, Item], Result], item: Item) -> Result:
    """In a worker process: call a function with its reader."""
    assert _read is not None
    return function(_read, item)
