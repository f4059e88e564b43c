"""How long work tells how far it is. The library only reports; the command line draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Reporter(Protocol):
    """Opens a task; inside the block its `Advance` is called with the amount just done."""

    def __call__(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """A task of `total` units ("layers", "tokens", "bytes")."""
        ...


@contextmanager
def silent(description: str, total: int, unit: str) -> Iterator[Advance]:
    """The reporter that reports nothing."""
    yield lambda amount: None
