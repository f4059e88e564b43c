"""What a repair keeps on disk while it runs: hidden states around one block, and the blocks that are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gqakit.checkpoint import write_bytes
from gqakit.checkpoint.atomic import output_errors
from gqakit.checkpoint.workspace import clear_claimed
from gqakit.errors import OutputError
from gqakit.models.blockwise.states import FILES as STATES
from gqakit.models.blockwise.states import States

JOB = "job.json"
FILES = (JOB, *STATES, "layer-[0-9][0-9][0-9].safetensors")
"""What a repair writes into its directory."""


class RepairStore:
    """The directory of a repair under way, which `claimed_directory` made and removes.

    The tensors of a block appear once whole. So a run that was killed continues behind the last block whose tensors are
    there; hidden states are made again.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, job: Mapping[str, Any], overwrite: bool) -> int:
        """Begin, or continue; returns the number of blocks that are done.

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
        block = 0
        while self._block(block).is_file():
            block += 1
        return block

    def states(self, name: str) -> States:
        """Hidden states of one model, all in files, where every process of a launch finds them."""
        return States(0, self.path, prefix=f"{name}-")

    def finish(self, block: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Note that a block is done: what was fitted, by name (nothing where it stays as it was), and its record."""
        # safetensors writes no file without tensors that every version reads
        content = save({"_": torch.zeros(1), **tensors}, metadata={"record": json.dumps(record)})
        write_bytes(self._block(block), content)

    def finished(self, block: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and record of a block that is done.

        Raises:
            OutputError: when the file is damaged.
        """
        path = self._block(block)
        try:
            with safe_open(path, "pt") as file:
                record = json.loads((file.metadata() or {})["record"])
                names = [name for name in file.keys() if name != "_"]  # noqa: SIM118  # it is no dict
                return {name: file.get_tensor(name) for name in names}, record
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OutputError(
                f"{path} cannot be read ({error}); use `overwrite=True` to start again"
            ) from error

    def _block(self, block: int) -> Path:
        return self.path / f"layer-{block:03d}.safetensors"
