"""Progress of long work: library code calls a `Reporter`, which draws a bar, prints lines now and then, or does nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

Advance = Callable[[int], None]


class Reporter(Protocol):
    """Opens a task; inside the block its `Advance` is called with the amount just done."""

    def __call__(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """A task of `total` units ("layers", "tokens", "bytes")."""
        ...


def reporter(progress: bool | Reporter) -> Reporter:
    """The reporter for what a caller asked for: True is a bar where one can be drawn and lines elsewhere, False nothing."""
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return silent
    return bar if sys.stderr.isatty() or _in_notebook() else lines


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and "IPKernelApp" in found.config


@contextmanager
def silent(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Reports nothing."""
    yield lambda amount: None


@contextmanager
def bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Draws a bar with amount, time and, of tokens, speed. It ends at 100 %."""
    from rich import progress as rich
    from rich.console import Console

    amount = rich.DownloadColumn() if unit == "bytes" else rich.MofNCompleteColumn()
    columns: list[Any] = [rich.TextColumn("{task.description}"), rich.BarColumn(), amount]
    columns += [] if unit == "bytes" else [rich.TextColumn(unit)]
    columns += [rich.TimeElapsedColumn(), rich.TimeRemainingColumn()]
    if unit == "tokens":
        columns.append(rich.TextColumn("{task.fields[rate]}"))
    with rich.Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, rate="")

        def advance(done: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=done, rate="" if speed is None else f"{speed:,.0f} tokens/s")

        yield advance
        progress.update(task, completed=total)


QUIET_SECONDS = 10.0
"""Time between two lines of `lines`."""


@contextmanager
def lines(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Prints a line every ten seconds and one at the end, for logs and pipes."""
    start = last = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= QUIET_SECONDS and done < total:
            last = now
            rate = done / (now - start)
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            left = f", {speed} {unit}/s, {duration((total - done) / rate)} left" if rate else ""
            say(f"{description}: {done:,} of {total:,} {unit} ({done / total:.0%}{left})")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    yield advance
    say(f"{description}: {total:,} {unit} in {duration(time.monotonic() - start)}")


def duration(seconds: float) -> str:
    """A time, roughly: "8.2 s", "75 s", "12 min", "3.5 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
