"""Which engine runs which kind of checkpoint: one table for plans, inspection, exports and docs/serving.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gqakit.errors import UsageError, unknown_name
from gqakit.models.families import FAMILIES

Kind = Literal["uniform", "grouped", "separate"]
"""`uniform`; `grouped` with one map for keys and values of a layer; `grouped` with two maps that differ."""


@dataclass(frozen=True)
class Engine:
    """What one engine takes.

    Attributes:
        name: as the option `engine` takes it.
        uniform, grouped, separate: how it runs each kind of checkpoint; None where it does not.
        families: the families whose grouped checkpoints it runs; None for all.
        checked: how that is known.
        equal_groups: whether the groups of a layer must have one size; layers may differ.
        tied: those of the families that it runs only where the output matrix is the embeddings.
    """

    name: str
    uniform: str
    grouped: str | None
    separate: str | None
    families: tuple[str, ...] | None
    checked: str
    equal_groups: bool = False
    tied: tuple[str, ...] = ()

    def how(self, kind: Kind, family: str | None = None, *, tied: bool = True) -> str | None:
        """How the engine runs a checkpoint of a kind, None if it does not.

        `tied`: its output matrix is its embeddings, as far as that is known.
        """
        if kind == "uniform":
            return self.uniform
        if family is not None and self.families is not None and family not in self.families:
            return None
        if family in self.tied and not tied:
            return None
        return self.grouped if kind == "grouped" else self.separate


_NAS = "gqakit export --to nemotron-nas"
_GGUF, _ONNX = "gqakit export --to gguf", "gqakit export --to onnx"
_HERE = "as it is, with gqakit or with trust_remote_code"
_VLLM = "as it is: trust_remote_code in its Transformers backend, or gqakit's plugin"
_REFINED = "more KV heads, the common refinement"

_ENGINES = (
    Engine("transformers", "as it is", _HERE, _HERE, None, "tests"),
    Engine(
        "llama.cpp",
        uniform=_GGUF,
        grouped=_GGUF,
        separate=f"{_GGUF}: {_REFINED} of the two maps",
        families=("llama", "mistral", "qwen2", "phi3", "qwen3"),
        checked="tests (xllamacpp, CPU)",
        tied=("qwen3",),
    ),
    Engine(
        "vllm",
        uniform="as it is",
        grouped=_VLLM,
        separate=f"as it is, with gqakit's plugin: {_REFINED}",
        families=("llama", "mistral", "qwen2", "qwen3", "phi3", "mixtral"),
        checked="benchmarks/vllm_check.py (CPU)",
    ),
    *(
        Engine(
            name,
            uniform="as it is",
            grouped=f"{_NAS}, groups of one size in each layer",
            separate=None,
            families=("llama", "mistral"),
            checked=checked,
            equal_groups=True,
        )
        for name, checked in (
            ("mlx-lm", "tests (CPU)"),
            ("nemotron-nas", "in MLX-LM; TensorRT-LLM and vLLM, which have the architecture, were not run"),
        )
    ),
    Engine("sglang", "as it is", grouped=None, separate=None, families=None, checked="not run"),
    Engine(
        "onnx",
        uniform=_ONNX,
        grouped=_ONNX,
        separate=_ONNX,
        families=("llama", "mistral", "qwen2", "qwen3"),
        checked="tests (ONNX Runtime, CPU): prefill",
    ),
)
ENGINES: dict[str, Engine] = {engine.name: engine for engine in _ENGINES}

TITLE = {
    "uniform": "`uniform`",
    "grouped": "`grouped`",
    "separate": "`grouped`, `--kv-maps separate`",
}


def names_that_run(kind: Kind, family: str | None = None, *, equal: bool = False, tied: bool = True) -> str:
    """The engines that run a kind of checkpoint, for a sentence.

    Args:
        equal: whether the groups of each layer have one size, as some engines want.
        tied: whether the output matrix is the embeddings, as far as that is known.
    """
    fits = (e for e in _ENGINES if equal or kind == "uniform" or not e.equal_groups)
    return ", ".join(engine.name for engine in fits if engine.how(kind, family, tied=tied) is not None)


def kind_of(format: str, separate: bool) -> Kind:
    """The kind of checkpoint that a format gives."""
    if format == "uniform":
        return "uniform"
    return "separate" if separate else "grouped"


def check_engine(
    name: str, formats: Sequence[str], separate: bool, family: str | None = None, *, tied: bool = True
) -> None:
    """Refuse what an engine cannot run.

    Args:
        name: of the engine.
        formats: those that the plan has or may come out with.
        separate: whether keys and values are grouped apart.
        family: `model_type` of the source; None if it is not known yet. Only what it can become is advised.
        tied: whether its output matrix is its embeddings, as far as that is known.

    Raises:
        UsageError: the engine is not known, or one of the formats is not for it; says what would fit.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    engine = ENGINES[name]
    for format in formats:
        kind = kind_of(format, separate)
        if engine.how(kind, family, tied=tied) is not None:
            continue
        shared_fits = kind == "separate" and engine.how("grouped", family, tied=tied) is not None
        known = FAMILIES.get(family or "")
        can = known is None or known.num_kv_heads is not None
        fit = (
            "`kv_maps=shared`"
            if shared_fits
            else "`format=uniform`"
            if can
            else f"nothing that {family} can become"
        )
        of = f" {family}" if family else ""
        of += " with an output matrix beside its embeddings" if family in engine.tied and not tied else ""
        apart = " with keys and values grouped apart" if kind == "separate" else ""
        may = " (which `format=auto` may come out with)" if len(formats) > 1 else ""
        raise UsageError(
            f"`engine={name}` cannot run a grouped{of} checkpoint{apart}{may}. What fits: {fit}. "
            f"Engines that can: {names_that_run(kind, family, tied=tied)}"
        )


def markdown() -> str:
    """The table as Markdown; docs/serving.md holds it."""
    header = ("engine", *TITLE.values(), "grouped families", "checked by")
    lines = [header, ("---",) * len(header)]
    for engine in _ENGINES:
        cells = (engine.how(kind) or "no" for kind in ("uniform", "grouped", "separate"))
        names = [f"{name} (tied)" if name in engine.tied else name for name in engine.families or ("all",)]
        families = "none" if engine.grouped is None else ", ".join(names)
        lines.append((f"`{engine.name}`", *cells, families, engine.checked))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
