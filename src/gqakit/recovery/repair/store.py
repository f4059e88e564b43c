"""What a repair keeps on disk while it runs: activations of one layer, and the layers that are done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gqakit.checkpoint import write_bytes
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.workspace import clear_claimed
from gqakit.errors import OutputError

JOB = "job.json"
FILES = (JOB, "*-[0-9][0-9][0-9].bin", "layer-[0-9][0-9][0-9].safetensors")
"""What a repair writes into its directory."""


@dataclass(frozen=True)
class Activations:
    """Float32 values of every token, window after window, in a plain file; only the windows asked for are read.

    Args:
        path: of the file.
        window: tokens per window. width: values per token.
    """

    path: Path
    window: int
    width: int

    def read(self, window: int) -> Tensor:
        """One window, `[1, window, width]`."""
        count = self.window * self.width
        with output_errors(self.path):
            values = np.fromfile(self.path, np.float32, count, offset=4 * window * count)
        if len(values) != count:
            raise OutputError(f"{self.path} ends early; it was changed while it was in use")
        return torch.from_numpy(values).view(1, self.window, self.width)

    def write(self, window: int, values: Tensor) -> None:
        """One window."""
        with output_errors(self.path), self._opened() as file:
            file.seek(4 * window * self.window * self.width)
            values.detach().float().cpu().contiguous().numpy().tofile(file)

    def _opened(self) -> BinaryIO:
        """The file for writing. Several processes may make it at once, and none may empty what another wrote."""
        return os.fdopen(
            os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b"
        )

    def sync(self) -> None:
        """Make what was written durable."""
        with output_errors(self.path), self.path.open("rb") as file:
            os.fsync(file.fileno())


class RepairStore:
    """The directory of a repair under way, which `claimed_directory` made and removes.

    The files of layer `n` appear once whole: first the streams that enter layer `n + 1`, then its tensors. So a run
    that was killed continues behind the last layer whose tensors are there.

    Args:
        path: the directory. window, width: of the streams.
    """

    def __init__(self, path: Path, window: int, width: int) -> None:
        self.path, self._window, self._width = path, window, width

    def open(self, job: Mapping[str, Any], overwrite: bool) -> int:
        """Begin, or continue; returns the number of layers that are done.

        Raises:
            OutputError: when the directory holds another repair and `overwrite` is not given.
        """
        content = (json.dumps(job, indent=2, sort_keys=True) + "\n").encode()
        marker = self.path / JOB
        if marker.is_file():
            with output_errors(marker):
                if marker.read_bytes() == content:
                    return self._done()
            if not overwrite:
                raise OutputError(
                    f"{self.path} holds an unfinished repair with other options; give the same ones to continue, or "
                    "use `overwrite=True` to start again"
                )
        clear_claimed(self.path)
        write_bytes(marker, content)
        return 0

    def _done(self) -> int:
        layer = 0
        while self._layer(layer).is_file():
            layer += 1
        return layer

    def activations(self, name: str, layer: int) -> Activations:
        """A file of activations of a layer."""
        return Activations(self.path / f"{name}-{layer:03d}.bin", self._window, self._width)

    def forget(self, layer: int) -> None:
        """Remove the activations of a layer."""
        for path in self.path.glob(f"*-{layer:03d}.bin"):
            path.unlink()

    def finish(self, layer: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Note that a layer is done: what was fitted, by name (nothing where it stays as it was), and its record."""
        # safetensors writes no file without tensors that every version reads
        content = save({"_": torch.zeros(1), **tensors}, metadata={"record": json.dumps(record)})
        write_bytes(self._layer(layer), content)

    def finished(self, layer: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and record of a layer that is done.

        Raises:
            OutputError: when the file is damaged.
        """
        path = self._layer(layer)
        try:
            with safe_open(path, "pt") as file:
                record = json.loads((file.metadata() or {})["record"])
                names = [name for name in file.keys() if name != "_"]  # noqa: SIM118  # it is no dict
                return {name: file.get_tensor(name) for name in names}, record
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OutputError(
                f"{path} cannot be read ({error}); use `overwrite=True` to start again"
            ) from error

    def _layer(self, layer: int) -> Path:
        return self.path / f"layer-{layer:03d}.safetensors"
