"""How much memory there is: of this machine, of a container on it, of a GPU."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

SHARE = 0.8
"""Of what is free that is used without being asked: other programs want some too."""


def free_memory(device: str) -> int:
    """Bytes that may be taken of a device's memory.

    Processes of one launch on one machine share its main memory.
    """
    if device.startswith("cuda"):
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    beside = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return int(SHARE * min(_of_machine(), _of_container()) / beside)


def _of_machine() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    with suppress(OSError, ValueError, AttributeError):  # macOS says what there is, not what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 8 * 2**30


def _of_container() -> int:
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    return 1 << 62


def in_words(nbytes: float) -> str:
    """Bytes for a message: "3.2 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes / 2**10:.1f} KiB"
