"""The options of `export`, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gqakit.errors import UsageError, unknown_name

TARGETS = ("gguf", "uniform", "onnx")
HOWS = ("auto", "pad", "equalise")
DTYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Both spellings of each, and the one that GGUF has."""

BUILT_IN = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
"""Quantisations that the gguf package makes."""

BY_TOOL = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""And those that llama.cpp's own tool makes from a file that is written here."""

FITTING = {
    "gguf": ("dtype", "quantise", "tokenizer_pre"),
    "uniform": ("how", "allow_full_cache"),
    "onnx": (),
}
"""The options that only one target has."""


def _about(help: str, panel: str | None = None, **more: Any) -> dict[str, Any]:
    return {"help": help, "panel": panel, **more}


@dataclass(frozen=True)
class ExportOptions:
    """What to write, and how.

    Attributes:
        to: "gguf", "uniform" or "onnx".
        how: for uniform, see `gqakit.exporters.uniform.describe_uniform`; None is "auto".
        allow_full_cache: for uniform, write the checkpoint even if it caches as much as the base model did.
        dtype: for GGUF: f32, f16 or bf16; None is the checkpoint's own.
        quantise: for GGUF, such as Q8_0, or Q4_K_M with llama.cpp's tool.
        tokenizer_pre: for GGUF, llama.cpp's name of how text is split before BPE, where it is not recognised.
        overwrite: replace what is at the output.

    Raises:
        UsageError: an unknown name, or options that do not go together; all that is wrong in one message.
    """

    to: str = field(metadata=_about("gguf, uniform or onnx.", choices=TARGETS))
    how: str | None = field(
        default=None,
        metadata=_about(
            "pad: query heads that nothing reads, larger weights. equalise: KV heads written again, a larger cache. "
            "Default: the smaller cache.",
            "uniform",
            choices=HOWS,
        ),
    )
    allow_full_cache: bool = field(
        default=False,
        metadata=_about(
            "Write it even if it needs as large a KV cache as the base model.",
            "uniform",
            names=("--allow-full-cache",),
        ),
    )
    dtype: str | None = field(
        default=None,
        metadata=_about(
            "f32, f16 or bf16. Default: the checkpoint's own.", "GGUF", choices=("f32", "f16", "bf16")
        ),
    )
    quantise: str | None = field(
        default=None,
        metadata=_about(
            "Q8_0, Q5_0, Q5_1, Q4_0 or Q4_1; with llama.cpp's llama-quantize on the PATH also Q4_K_M and others.",
            "GGUF",
            choices=(*BUILT_IN, *BY_TOOL),
            names=("--quantise", "--quantize"),
        ),
    )
    tokenizer_pre: str | None = field(
        default=None,
        metadata=_about(
            "llama.cpp's name of how text is split before BPE. Default: as tokenizer.json says.", "GGUF"
        ),
    )
    overwrite: bool = field(default=False, metadata=_about("Replace what is there.", names=("--overwrite",)))

    def __post_init__(self) -> None:
        if self.to not in TARGETS:
            raise unknown_name("target", self.to, TARGETS)
        strange = [
            name
            for target, names in FITTING.items()
            for name in names
            if target != self.to and getattr(self, name)
        ]
        problems = [f"`{', '.join(strange)}` does not go with `to={self.to}`"] if strange else []
        for kind, name, known in (
            ("way", self.how, HOWS),
            ("dtype", self.dtype, DTYPES),
            ("quantisation", self.quantise, (*BUILT_IN, *BY_TOOL)),
        ):
            if name is not None and name not in known:
                problems.append(str(unknown_name(kind, name, known)))
        if self.dtype and self.quantise in BUILT_IN:
            problems.append(
                f"`dtype={self.dtype}` and `quantise={self.quantise}` contradict each other; give one"
            )
        if problems:
            raise UsageError("; ".join(problems))
