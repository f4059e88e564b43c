"""Options of running a model: where, in which precision, in how much memory. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gqakit.errors import unknown_name
from gqakit.options import Options, option

PRECISIONS = {
    "float32": "float32", "fp32": "float32", "f32": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "f16": "float16",
}  # fmt: skip
"""Every spelling of a precision, and torch's name of it."""
RUN = "Running"
KV_CACHE = "Type of the KV cache: one, or those of keys and of values, such as q8_0,q4_0 (docs/kv-cache.md); +h rotates."
"""Help of the option `kv_cache` of commands that run a model."""
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("KMGT", 1)
    for unit, base in (("iB", 1024), ("B", 1000))
}


def parse_size(text: str) -> int | None:
    """A number of bytes: "4GiB", "800 MB", "1000000"; None if it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = None if found is None else {u.lower(): size for u, size in _UNITS.items()}.get(found[2].lower())
    return None if found is None or unit is None else int(float(found[1]) * unit)


@dataclass(frozen=True)
class DeviceOptions(Options):
    """Where a model runs."""

    device: str = option(
        "auto", "Where to run: cpu, cuda, cuda:1, mps, or auto: a GPU where torch sees one.", panel=RUN
    )

    def problems(self) -> Iterator[str]:
        """A device of no kind that torch has."""
        yield from super().problems()
        if not _DEVICE.fullmatch(self.device):
            yield str(
                unknown_name("value of `device`", self.device, ("auto", "cpu", "cuda", "cuda:1", "mps"))
            )


@dataclass(frozen=True)
class StackOptions(Options):
    """Which attention layers of a model with several kinds."""

    stacks: tuple[str, ...] = option(
        (), "Kinds of attention layers, such as decoder,cross (see `gqakit families`). Default: what is cached.",
        panel="How",
    )  # fmt: skip


@dataclass(frozen=True)
class RunOptions(DeviceOptions):
    """Where a model runs, and in which precision."""

    dtype: str = option(
        "auto", "Precision to run in; auto: the checkpoint's own on a GPU, float32 on a CPU (sums always in 32 or 64 bit).",
        panel=RUN, choices=("auto", *PRECISIONS),
    )  # fmt: skip

    @property
    def precision(self) -> str:
        """torch's name of the precision, or auto."""
        return PRECISIONS.get(self.dtype, self.dtype)


@dataclass(frozen=True)
class SpaceOptions(DeviceOptions):
    """Where a model runs, and in how much memory."""

    max_memory: str | None = option(
        None,
        "Most memory for weights, sums and hidden states, such as 4GiB. Default: what is free.",
        panel=RUN,
    )
    blockwise: str = option(
        "auto", "Run block by block, with the weights of one block in memory; auto: where the whole model does not fit.",
        panel=RUN, choices=("auto", "always", "never"),
    )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """An amount of memory that is none."""
        yield from super().problems()
        if self.max_memory is not None and not parse_size(str(self.max_memory)):
            yield f"`max_memory` is {self.max_memory!r}, expected a number of bytes such as 4GiB or 800MB"


@dataclass(frozen=True)
class MemoryOptions(RunOptions, SpaceOptions):
    """Where a model runs, in which precision, and in how much memory."""


UPLOAD = "Afterwards upload it to this repository of the Hugging Face hub, organisation/name."
"""Help of the option `push_to_hub` of commands that write a checkpoint."""
REPORT = "Write an HTML page about it: quality against bytes, which heads share, what fits into memory."
"""Help of the option `report` of commands that measure what they write."""
