"""Options of `export`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gqakit.options import Options, option

TARGETS = ("gguf", "uniform", "onnx")
DTYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Both spellings of each, and the one that GGUF has."""

BUILT_IN = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
"""Quantisations that the gguf package makes."""

BY_TOOL = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""And those that llama.cpp's own tool makes from a file that is written here."""

UNIFORM, GGUF = "uniform", "GGUF"


@dataclass(frozen=True)
class ExportOptions(Options):
    """What to write, and how. An option under "uniform" or "GGUF" goes with that target only."""

    to: str | None = option(None, "What to write.", choices=TARGETS)
    overwrite: bool = option(False, "Replace what is there.")
    how: str | None = option(
        None, "pad: query heads that nothing reads, larger weights. equalise: KV heads written again, a larger cache. "
        "Default: the smaller cache.", panel=UNIFORM, choices=("auto", "pad", "equalise"),
    )  # fmt: skip
    allow_full_cache: bool = option(
        False, "Write it even if it needs as large a KV cache as the base model.", panel=UNIFORM
    )
    dtype: str | None = option(
        None, "Type of the numbers. Default: the checkpoint's own.", panel=GGUF, choices=tuple(DTYPES)
    )
    quantise: str | None = option(
        None, "Quantise; those with a K and IQ4 with llama.cpp's llama-quantize, on the PATH.", panel=GGUF,
        choices=(*BUILT_IN, *BY_TOOL), flags=("--quantise", "--quantize"),
    )  # fmt: skip
    tokenizer_pre: str | None = option(
        None, "llama.cpp's name of how text is split before BPE. Default: as tokenizer.json says.", panel=GGUF
    )

    def problems(self) -> Iterator[str]:
        """What does not go together."""
        if self.to is None:
            yield f"give `to`, one of {', '.join(TARGETS)}"
        for target, names in (
            ("gguf", ("dtype", "quantise", "tokenizer_pre")),
            ("uniform", ("how", "allow_full_cache")),
        ):
            for name in names:
                if self.to not in (target, None) and getattr(self, name):
                    yield f"`{name}` does not go with `to={self.to}`"
        if self.dtype and self.quantise in BUILT_IN:
            yield f"`dtype={self.dtype}` and `quantise={self.quantise}` contradict each other; give one"
