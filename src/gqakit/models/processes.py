"""Several processes of one launch (torchrun, `accelerate launch`) that share the windows of a text.

Only sums cross between them, in float64 on the CPU, so the backend is gloo wherever they run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gqakit.errors import DataError, UsageError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes of a launch.

    Attributes:
        rank: this one's number. count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_launch(cls) -> Processes:
        """Those of the launch that this process belongs to; it alone without one."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return ALONE
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), count)

    @property
    def is_first(self) -> bool:
        """Whether this one writes and reports."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """The device of this process: of the GPUs of a machine each takes its own."""
        if self.count > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        return device

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """This process's share: every `count`-th."""
        return list(items[self.rank :: self.count])

    def agree(self, what: Mapping[str, Any]) -> None:
        """Make sure that all processes are about the same.

        Raises:
            DataError: they are not; says in what.
        """
        for rank, other in enumerate(self.every(dict(what))):
            for name, value in what.items():
                if other[name] != value:
                    raise DataError(
                        f"the processes of this launch disagree: {name} is {_short(value)} in process {self.rank} and "
                        f"{_short(other[name])} in process {rank}; give all of them the same model, data and options"
                    )

    def every(self, value: Item) -> list[Item]:
        """The value that each process has, by rank."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def add_up(self, *tensors: Tensor) -> None:
        """Replace tensors on the CPU by their sums over all processes."""
        if self.count > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.all_reduce(tensor)

    def total(self, value: int) -> int:
        """The sum of a whole number over all processes."""
        return sum(self.every(value))

    def largest(self, value: int) -> int:
        """The largest of a whole number over all processes."""
        return max(self.every(value))

    def wait(self) -> None:
        """Until all processes have come here."""
        self.every(None)

    def alone(self, command: str) -> None:
        """Refuse several processes.

        Raises:
            UsageError: there are several.
        """
        if self.count > 1:
            raise UsageError(
                f"{command} runs in one process; start it without a launcher. `calibrate`, `evaluate`, `repair` and "
                "`uptrain` run in several"
            )


ALONE = Processes()
"""A process without a launch."""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
