"""Options of running a model: where, and in which precision. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.options import Options, option

PRECISIONS = {
    "float32": "float32", "fp32": "float32", "f32": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "f16": "float16",
}  # fmt: skip
"""Every spelling of a precision, and torch's name of it."""
DEVICES = ("auto", "cpu", "cuda")
RUN = "Running"
KV_CACHE = "Type of the KV cache: one, or those of keys and of values, such as q8_0,q4_0 (docs/kv-cache.md); +h rotates."
"""Help of the option `kv_cache` of commands that run a model."""


@dataclass(frozen=True)
class DeviceOptions(Options):
    """Where a model runs."""

    device: str = option(
        "auto", "Where to run; auto is a GPU where torch sees one.", panel=RUN, choices=DEVICES
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

    dtype: str = option("float32", "Precision to run in.", panel=RUN, choices=tuple(PRECISIONS))

    @property
    def precision(self) -> str:
        """torch's name of the precision."""
        return PRECISIONS[self.dtype]


UPLOAD = "Afterwards upload it to this repository of the Hugging Face hub, organisation/name."
"""Help of the option `push_to_hub` of commands that write a checkpoint."""
