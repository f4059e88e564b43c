"""Progress, tables and remarks: drawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from gqakit.progress import Advance, Reporter, silent


class Screen:
    """Where a command's words go. Results on standard output, everything else on standard error.

    Args:
        as_json: results as JSON. quiet: no progress, no remarks, no warnings. verbose: logging at INFO.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        level = logging.INFO if verbose else logging.ERROR
        logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")
        ours = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
        logging.getLogger("gqakit").setLevel(ours)
        _calm_transformers(verbose)

    @property
    def progress(self) -> Reporter:
        """A bar on a terminal, a line now and then elsewhere, nothing when quiet."""
        if self.quiet:
            return silent
        return _bar if sys.stderr.isatty() else _lines

    def remark(self, text: str) -> None:
        """A word to the user, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def json(self, value: Any) -> None:
        """A result as JSON; dataclasses become objects."""
        print(json.dumps(_jsonable(value), indent=2, allow_nan=False))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A result as a table; without names for its columns, just rows."""
        if sys.stdout.isatty():
            _rich_table(title, header, rows)
            return
        print(title)
        widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows] if any(header) else rows:
            print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def line(self, text: str) -> None:
        """A result as a line."""
        print(text)


@contextmanager
def interruptible(screen: Screen, remark: str) -> Iterator[None]:
    """On Ctrl-C say what becomes of the work, and exit with the code for it instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        import typer

        screen.remark(f"interrupted{remark}")
        raise typer.Exit(130) from None


def _jsonable(value: Any) -> Any:
    """A value as JSON knows it: dataclasses and models as objects, NaN and infinity, which it lacks, as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    dump = getattr(value, "model_dump", None)
    return str(value) if dump is None else _jsonable(dump(mode="json"))


def _rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", show_header=any(header))
    for index, name in enumerate(header):
        numeric = all(str(row[index])[:1].isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class _Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    unit_name = TextColumn("" if unit == "bytes" else unit)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
        unit_name,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    if unit == "tokens":
        columns = (*columns, _Rate())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


def _duration(seconds: float) -> str:
    """A time to wait, roughly."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_QUIET_SECONDS = 10.0


@contextmanager
def _lines(description: str, total: int, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= _QUIET_SECONDS and done < total:
            last = now
            rate = done / (now - start)
            left = f", {rate:,.0f} {unit}/s, {_duration((total - done) / rate)} left" if rate else ""
            print(
                f"{description}: {done:,} of {total:,} {unit} ({done / max(total, 1):.0%}{left})",
                file=sys.stderr,
            )

    yield advance
    print(f"{description}: {done:,} {unit} in {time.monotonic() - start:.1f} s", file=sys.stderr)


def _calm_transformers(verbose: bool) -> None:
    """transformers draws bars and logs at import; ask it, before that, to leave the screen to us."""
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
