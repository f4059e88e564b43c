"""The finished cells of a comparison, kept in a file as soon as each is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gqakit.checkpoint.atomic import regular, write_bytes
from gqakit.errors import OutputError
from gqakit.evaluation.page.content import LayerGroups, Point

FILE = "comparison.json"


class Cell(BaseModel):
    """One checkpoint of the comparison, in one type of cache.

    Attributes:
        name: of the row. way: what made it. budget: as it was asked for; "" for the source.
        cache: the types that keys and values are rounded to; "" for 16 bits.
        kv_bytes: per token of its cache. kv_ratio: of the source's.
        scores: by measure. why_not: the reason where it cannot be made; it then has no scores.
        layers: groups of keys and values with their errors, layer by layer.
        text: its continuation of the prompt. seconds: that it took. command: that makes it again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    way: str
    budget: str
    cache: str = ""
    kv_bytes: int = 0
    kv_ratio: float = 0.0
    scores: dict[str, float | None] = {}
    why_not: str = ""
    layers: tuple[tuple[str, tuple[int, ...], tuple[int, ...], float, float], ...] = ()
    text: str = ""
    seconds: float = 0.0
    command: str = ""

    @property
    def point(self) -> Point:
        """As the page shows it."""
        return Point(
            self.name, self.way, self.kv_bytes, self.kv_ratio, self.scores, self.command,
            tuple(LayerGroups(*layer) for layer in self.layers), self.text, self.cache,
        )  # fmt: skip


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    gqakit_comparison: int = 1
    settings: dict[str, Any]
    cells: tuple[Cell, ...]


class Cells:
    """Cells by name, in a file.

    Args:
        directory: of the comparison.
        settings: what all cells share, as JSON has it.
        overwrite: start over where the file has other settings.

    Raises:
        OutputError: the file is none of ours, or of a comparison with other settings.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = directory / FILE
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.found: dict[str, Cell] = {}
        if not self.path.exists():
            return
        try:
            kept = _File.model_validate_json(regular(self.path).read_bytes())
        except (OSError, ValidationError) as error:
            raise OutputError(
                f"{self.path}: is not a comparison that gqakit wrote. Move it, or choose another directory."
            ) from error
        if kept.settings == self.settings:
            self.found = {cell.name: cell for cell in kept.cells}
        elif not overwrite:
            differing = [n for n in self.settings if self.settings[n] != kept.settings.get(n)]
            raise OutputError(
                f"{self.path}: holds a comparison with other settings ({', '.join(differing)}). "
                "Choose another directory, or use --overwrite to start over."
            )

    def add(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.found[cell.name] = cell
        content = _File(settings=self.settings, cells=tuple(self.found.values()))
        write_bytes(self.path, (content.model_dump_json(indent=1) + "\n").encode())
