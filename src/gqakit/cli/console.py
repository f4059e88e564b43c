"""Tables, remarks and results: drawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from gqakit.progress import Reporter, reporter


class Screen:
    """Where a command's words go: results on standard output, everything else on standard error.

    Args:
        as_json: results as JSON. quiet: no progress, no remarks, no warnings. verbose: logging at INFO.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self._speaks = os.environ.get("RANK", "0") == "0"  # of several processes of one launch the first
        quiet = quiet or not self._speaks
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        level = logging.INFO if verbose else logging.ERROR
        logging.basicConfig(
            level=level, stream=sys.stderr, format="%(name)s: %(message)s" if verbose else "%(message)s"
        )
        ours = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
        logging.getLogger("gqakit").setLevel(ours)
        logging.getLogger("gqakit.steps").setLevel(logging.WARNING if quiet else logging.INFO)
        if not verbose:
            _calm_transformers()

    @property
    def progress(self) -> Reporter:
        """A bar on a terminal, a line now and then elsewhere, nothing when quiet."""
        return reporter(not self.quiet)

    def remark(self, text: str) -> None:
        """A word to the user, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def json(self, value: Any) -> None:
        """A result as JSON; dataclasses become objects."""
        self.line(json.dumps(_jsonable(value), indent=2, allow_nan=False))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A result as a table; without names for its columns, just rows. The first column never wraps."""
        if not self._speaks:
            return
        if sys.stdout.isatty():
            _rich_table(title, header, rows)
            return
        print(title)
        widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows] if any(header) else rows:
            print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def line(self, text: str) -> None:
        """A result as a line."""
        if self._speaks:
            print(text)


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


FOLDED = 24
"""The longest words of text that stay whole in a narrow terminal."""


def _rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as the terminal at most: headings over numbers break before names fold; numbers stay whole."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = [(name, *(str(row[index]) for row in rows)) for index, name in enumerate(header)]
    numeric = [
        index > 0 and all(re.match(r"-?\d|-$", cell) for cell in column[1:])
        for index, column in enumerate(columns)
    ]
    whole = [max(map(len, column)) for column in columns]
    words = [min(max(map(len, " ".join(column).split()), default=0), FOLDED) for column in columns]
    gaps = 2 * len(columns)
    # Text folds anyhow: only the names in front and numbers count in full.
    counted = [
        w if number or not index else min(w, FOLDED)
        for index, (w, number) in enumerate(zip(whole, numeric, strict=True))
    ]
    narrow = sum(counted) + gaps > console.width
    fits = sum(words) + gaps <= console.width
    table = Table(
        title=title, title_justify="left", header_style="bold", show_header=any(header), box=SIMPLE_HEAD,
        show_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name, number, word in zip(header, numeric, words, strict=True):
        heading = re.sub(r" |(?<=/)", "\n", name) if number and narrow else name
        justify = "right" if number else "left"
        table.add_column(
            heading,
            justify=justify,
            overflow="fold",
            no_wrap=number,
            min_width=word if fits and not number else None,
        )
    if not any(numeric):
        table.columns[0].no_wrap = True  # a name beside its explanation, which folds
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*row)
    console.print(table)


def _calm_transformers() -> None:
    """transformers draws bars and logs, some at import: ask it, before that, to leave the screen to us."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
