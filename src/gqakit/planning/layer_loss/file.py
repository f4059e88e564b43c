"""Measured losses on disk: one line for each, written as soon as it is known, so that nothing is measured twice."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gqakit.checkpoint.atomic import output_errors, regular
from gqakit.errors import PlanError
from gqakit.planning.layer_features import Side

Key = tuple[int, Side, tuple[int, ...]]
"""Layer, what is converted, and the group of every head."""


class LossHeader(BaseModel):
    """What losses were measured on; only losses of the same may be used together.

    `stacks` says what layers are counted through, where a family has several kinds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gqakit_losses: Literal[1] = 1
    source: str
    stacks: tuple[str, ...] = ()
    moments: str | None
    merge: str
    text_sha256: str
    windows: int = Field(gt=0)
    window: int = Field(gt=0)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int = Field(ge=0)
    side: Side
    labels: tuple[int, ...]
    loss: float


@dataclass
class LossFile:
    """Losses known so far. Without a path they are kept in memory only."""

    header: LossHeader
    path: Path | None = None
    known: dict[Key, float] = field(default_factory=dict)

    @classmethod
    def open(cls, header: LossHeader, path: Path | None, *, replace: bool = False) -> LossFile:
        """Continue a file where it is about the same, or begin one.

        A last line that an interruption cut short is dropped. With `replace`, a file about something else is started over.

        Raises:
            PlanError: when the file is about something else, or is no file of losses.
            OutputError: when it cannot be written.
        """
        if path is not None:
            with output_errors(path):
                regular(path)
        if path is None or not path.exists() or not path.stat().st_size:
            opened = cls(header, path)
            opened._write(header.model_dump_json())
            return opened
        with output_errors(path):
            text = path.read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")
        whole, torn = lines[:-1], lines[-1]
        try:
            found = LossHeader.model_validate_json(whole[0] if whole else "")
        except ValidationError as error:
            raise PlanError(
                f"{path} holds no losses that this gqakit wrote; give another `losses`"
            ) from error
        if found != header and replace:
            path.unlink()
            return cls.open(header, path)
        if found != header:
            different = [
                name for name in LossHeader.model_fields if getattr(found, name) != getattr(header, name)
            ]
            raise PlanError(
                f"the losses in {path} were measured with another {', '.join(different)}; delete the file or give "
                "another `losses`"
            )
        opened = cls(header, path)
        for number, line in enumerate(whole[1:], start=2):
            try:
                record = _Line.model_validate_json(line)
            except ValidationError as error:
                raise PlanError(
                    f"{path}, line {number} is not a loss: {line[:60]!r}; delete the file"
                ) from error
            opened.known[record.layer, record.side, record.labels] = record.loss
        if torn:
            with output_errors(path):
                os.truncate(path, len(text.encode()) - len(torn.encode()))
        return opened

    def add(self, key: Key, loss: float) -> None:
        """Note one loss.

        Raises:
            PlanError: when it is no number.
        """
        layer, side, labels = key
        if not math.isfinite(loss):
            raise PlanError(
                f"layer {layer}: converting {'keys and values' if side == 'both' else side + 's'} to groups "
                f"{list(labels)} makes the model's output {loss}; is the model sound on this text?"
            )
        self.known[key] = loss
        self._write(json.dumps({"layer": layer, "side": side, "labels": list(labels), "loss": loss}))

    def _write(self, line: str) -> None:
        if self.path is None:
            return
        with output_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def measured_on(path: Path | None) -> str:
    """The fingerprint of the model that a file of losses is about, empty where there is no such file."""
    try:
        first = "" if path is None else regular(path).read_text(encoding="utf-8").partition("\n")[0]
        return LossHeader.model_validate_json(first).source
    except (OSError, ValueError):  # pydantic's errors are ValueErrors; opening the file says what is wrong
        return ""
