"""The options of `export`, checked once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gqakit.models.run_options import PRECISIONS
from gqakit.options import REQUIRED, Options, option

TARGETS = ("gguf", "uniform", "nemotron-nas", "onnx")
HOWS = ("auto", "pad", "equalise")
DTYPES = {
    name: {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[full] for name, full in PRECISIONS.items()
}
"""Every spelling of a precision, and GGUF's name of it."""

BUILT_IN = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
"""Quantisations that the gguf package makes."""

BY_TOOL = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""And those that llama.cpp's own tool makes from a file that is written here."""


@dataclass(frozen=True)
class ExportOptions(Options):
    """What to write, and how."""

    to: str = option(REQUIRED, "What to write.", choices=TARGETS)
    how: str | None = option(
        None, "pad: query heads that nothing reads, larger weights. equalise: KV heads written again, a larger cache. "
        "Default: the smaller cache.", panel="uniform", choices=HOWS,
    )  # fmt: skip
    allow_full_cache: bool = option(
        False,
        "Write it even if it needs as large a KV cache as the base model.",
        panel="uniform, nemotron-nas",
    )
    dtype: str | None = option(
        None, "Precision of the weights. Default: the checkpoint's own.", panel="GGUF", choices=tuple(PRECISIONS)
    )  # fmt: skip
    quantise: str | None = option(
        None, f"{', '.join(BUILT_IN)}; the others with llama.cpp's llama-quantize on the PATH.",
        panel="GGUF", choices=(*BUILT_IN, *BY_TOOL), flags=("--quantise", "--quantize"),
    )  # fmt: skip
    tokenizer_pre: str | None = option(
        None, "llama.cpp's name of how text is split before BPE. Default: as tokenizer.json says.", panel="GGUF"
    )  # fmt: skip
    overwrite: bool = option(False, "Replace what is there.", panel="Output")

    def problems(self) -> Iterator[str]:
        """Options of another target, and two that name a precision."""
        yield from super().problems()
        of = {
            ("gguf",): ("dtype", "quantise", "tokenizer_pre"),
            ("uniform",): ("how",),
            ("uniform", "nemotron-nas"): ("allow_full_cache",),
        }
        for targets, names in of.items():
            if self.to not in targets and (strange := [f"`{name}`" for name in names if getattr(self, name)]):
                yield f"{', '.join(strange)} does not go with `to={self.to}`"
        if self.dtype and self.quantise in BUILT_IN:
            yield f"`dtype={self.dtype}` and `quantise={self.quantise}` contradict each other; give one"
