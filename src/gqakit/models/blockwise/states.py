"""Hidden states between blocks: in memory as far as that goes, the rest in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint.atomic import output_errors
from gqakit.errors import OutputError

FILES = ("*.hidden",)
"""What is written into a work directory."""


class States:
    """Tensors by name. They lie on the CPU, whatever device they came from.

    Args:
        memory: bytes that may be kept in memory; None for all.
        folder: where the others go; a directory that exists. Each file says which run it is of.
        run: what tells this run from others.
        prefix: what file names begin with, where others' files lie in the same folder.
    """

    def __init__(
        self,
        memory: int | None = None,
        folder: Path | None = None,
        run: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        self._memory, self._folder, self._run, self._prefix = memory, folder, dict(run or {}), prefix
        self._kept: dict[str, Tensor] = {}
        self._held = 0

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor in place of what has this name."""
        self.drop(key)
        tensor = tensor.detach()
        if self._folder is None or self._memory is None or self._held + tensor.nbytes <= self._memory:
            self._kept[key] = tensor.cpu()
            self._held += tensor.nbytes
            return
        head = {"run": self._run, "key": key, "dtype": str(tensor.dtype), "shape": [*tensor.shape]}
        header = (json.dumps(head, sort_keys=True) + "\n").encode()
        path = self._file(key)
        with output_errors(path), path.open("wb") as file:
            file.write(header)
            file.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)

    def get(self, key: str) -> Tensor:
        """The tensor of this name.

        Raises:
            OutputError: its file is of another run, or damaged.
        """
        if key in self._kept:
            return self._kept[key]
        path = self._file(key)
        with output_errors(path), path.open("rb") as file:
            head = self._header(path, key, file.readline())
            dtype, shape = getattr(torch, head["dtype"].removeprefix("torch.")), head["shape"]
            buffer = torch.empty(shape, dtype=dtype)
            count = file.readinto(buffer.view(-1).view(torch.uint8).numpy().data)
        if count != buffer.nbytes:
            raise OutputError(f"{path} ends early; it was changed while it was in use")
        return buffer

    def drop(self, key: str) -> None:
        """Forget the tensor of this name, if there is one."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._held -= found.nbytes
        elif self._folder is not None:
            self._file(key).unlink(missing_ok=True)

    def _header(self, path: Path, key: str, line: bytes) -> dict[str, Any]:
        try:
            head = json.loads(line)
            expected = head["run"] == self._run and head["key"] == key
        except (ValueError, KeyError, TypeError):
            raise OutputError(f"{path} is no file of hidden states; remove it and run again") from None
        if not expected:
            raise OutputError(
                f"{path} holds hidden states of another run (model, data, window or precision differ); "
                "remove it and run again"
            )
        return head

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._prefix}{key}.hidden"
