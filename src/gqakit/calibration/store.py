"""The statistics file: safetensors with one tensor per layer and kind of statistic, and its origin in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from gqakit.checkpoint.atomic import atomic_file, output_errors, regular
from gqakit.core.gradients import LayerGradients
from gqakit.core.statistics import LayerStatistics
from gqakit.errors import PlanError

_KEY = "gqakit_moments"
_KINDS = tuple(field.name for field in fields(LayerStatistics))
_OF_GRADIENTS = tuple(field.name for field in fields(LayerGradients))


_ENTRY = 192
"""Bytes of the list of tensors that one takes, at most."""


class StatisticsHeader(BaseModel):
    """Where moments came from. Version 2 has gradients besides what version 1 has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1, 2] = 1
    source: str
    fingerprint: str
    num_layers: int = Field(gt=0)
    width: int = Field(gt=0)
    tokens: int = Field(gt=0)
    tokens_asked: int = Field(gt=0)
    window: int = Field(gt=0)
    text: str
    text_sha256: str


@dataclass(frozen=True)
class StatisticsFile:
    """Calibration statistics on disk, read layer by layer."""

    path: Path
    header: StatisticsHeader

    def __repr__(self) -> str:
        head = self.header
        return (
            f"{type(self).__name__}({self.path}: {head.tokens:,} tokens of {head.text}, {head.num_layers} layers of "
            f"{Path(head.source).name})"
        )

    @classmethod
    def open(cls, path: Path) -> StatisticsFile:
        """Read the header.

        Raises:
            PlanError: when the file is missing, corrupt or no statistics file.
        """
        try:
            with safe_open(regular(path), "pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise PlanError(f"cannot read statistics {path}: {error}") from error
        if _KEY not in metadata:
            raise PlanError(
                f"{path} is a safetensors file but holds no statistics of gqakit's; make them with `gqakit calibrate`"
            )
        try:
            return cls(path, StatisticsHeader.model_validate_json(metadata[_KEY]))
        except ValidationError as error:
            raise PlanError(
                f"statistics {path} have a header that this gqakit does not read: {_first(error)}"
            ) from error

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What is stated of the layers, as fields of `LayerStatistics`."""
        with safe_open(self.path, "pt") as file:
            names = [name for name in file.keys() if ".gradients." not in name]  # noqa: SIM118  # no mapping
        return frozenset(name.rpartition(".")[2] for name in names)

    def layer(self, key: int | str) -> LayerStatistics:
        """The statistics of one layer, by `ModelSpec.key`, in the stored precision (float32)."""
        with safe_open(self.path, "pt") as file:
            names = set(file.keys())
            found = {
                kind: file.get_tensor(name) for kind in _KINDS if (name := f"layers.{key}.{kind}") in names
            }
        if not found:
            raise PlanError(
                f"statistics {self.path} say nothing of layer {key}; run `gqakit calibrate` with these `stacks`"
            )
        return LayerStatistics(**found)

    @property
    def took_gradients(self) -> bool:
        """Whether gradients were asked for; there are none all the same of a model that cannot be differentiated."""
        return self.header.version >= 2

    @cached_property
    def has_gradients(self) -> bool:
        """Whether losses can be predicted from them."""
        with safe_open(self.path, "pt") as file:
            return any(".gradients." in name for name in file.keys())  # noqa: SIM118  # no mapping

    def gradients(self, key: int | str) -> LayerGradients | None:
        """The gradients of one layer, likewise; None where none were taken."""
        with safe_open(self.path, "pt") as file:
            names = set(file.keys())
            found = {
                kind: file.get_tensor(name)
                for kind in _OF_GRADIENTS
                if (name := f"layers.{key}.gradients.{kind}") in names
            }
        return LayerGradients(**found) if found else None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the whole file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
        return f"sha256:{digest.hexdigest()}"

    def matches(
        self, fingerprint: str, text_sha256: str, tokens: int, window: int, *, gradients: bool = False
    ) -> bool:
        """Whether calibrating this model on this text would give these statistics again, or more than is wanted."""
        head = self.header
        if gradients and not self.took_gradients:
            return False
        have = (head.fingerprint, head.text_sha256, head.tokens_asked, head.window)
        return have == (fingerprint, text_sha256, tokens, window)

    def check_source(self, fingerprint: str, name: str) -> None:
        """Raise `PlanError` unless the statistics were taken on the model with this fingerprint."""
        if self.header.fingerprint != fingerprint:
            raise PlanError(
                f"statistics {self.path} were taken on {self.header.source} ({self.header.fingerprint[:19]}…), "
                f"not on {name} ({fingerprint[:19]}…); run `gqakit calibrate` on it"
            )


def save_statistics(
    path: Path,
    header: StatisticsHeader,
    layers: Mapping[str, LayerStatistics] | Mapping[int, LayerStatistics],
    gradients: Mapping[str, LayerGradients] | None = None,
) -> StatisticsFile:
    """Write statistics in float32, atomically.

    Args:
        path: of the file. header: what they were taken on.
        layers, gradients: by `ModelSpec.key`; gradients are None where they were not asked for, and empty where the
            model has none to take.
    """
    header = header.model_copy(update={"version": 1 if gradients is None else 2})
    with writing_statistics(path, header) as write:
        for key, moments in layers.items():
            write(str(key), moments)
        for key, moments in (gradients or {}).items():
            write(key, moments)
    return StatisticsFile(path, header)


@contextmanager
def writing_statistics(
    path: Path, header: StatisticsHeader
) -> Iterator[Callable[[str, LayerStatistics | LayerGradients], None]]:
    """`save_statistics` layer by layer: only one layer's are in memory. The file appears when the context ends.

    A safetensors file begins with a list of its tensors, which is known last. So room is left for it; what is too much
    is filled with spaces, as the format allows.
    """
    kinds = len(_KINDS) + (len(_OF_GRADIENTS) if header.version > 1 else 0)
    room = 8 + -(-(4096 + 2 * len(header.model_dump_json()) + header.num_layers * kinds * _ENTRY) // 8) * 8
    entries: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(header.model_dump(), sort_keys=True)}}
    with atomic_file(path) as file:
        with output_errors(path):
            file.write(b" " * room)
        end = 0

        def write(key: str, moments: LayerStatistics | LayerGradients) -> None:
            nonlocal end
            place = f"layers.{key}.gradients" if isinstance(moments, LayerGradients) else f"layers.{key}"
            for kind in (field.name for field in fields(moments)):
                tensor = getattr(moments, kind)
                if tensor is None:
                    continue
                raw = tensor.to("cpu", torch.float32).contiguous().view(-1).view(torch.uint8).numpy().data
                with output_errors(path):
                    file.write(raw)
                offsets = [end, end + raw.nbytes]
                entries[f"{place}.{kind}"] = {
                    "dtype": "F32", "shape": [*tensor.shape], "data_offsets": offsets,
                }  # fmt: skip
                end += raw.nbytes

        yield write
        listed = json.dumps(entries, separators=(",", ":")).encode()
        assert len(listed) <= room - 8
        with output_errors(path):
            file.seek(0)
            file.write((room - 8).to_bytes(8, "little") + listed.ljust(room - 8))


def _first(error: ValidationError) -> str:
    """What is wrong first, on one line."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]
