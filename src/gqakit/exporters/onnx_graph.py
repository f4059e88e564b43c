"""A checkpoint as an ONNX graph, through transformers' own exporter."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from gqakit.errors import FamilyError, GqakitError, MissingDependencyError
from gqakit.exporters.source import ExportSource
from gqakit.models.load import load

FILE = "model.onnx"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PROMPT = (2, 40)
"""Shape of the sample input. Both sizes are free in the graph, but 1 would be taken for a constant. The length is one at
which the attention function takes its path for prompts: that for a few tokens fixes the length."""


def load_exporter() -> Any:
    """The module with transformers' ONNX exporter.

    Raises:
        MissingDependencyError: this transformers has none, or the onnx packages are not installed.
    """
    try:
        from transformers.exporters import exporter_onnx

        exporter_onnx.OnnxExporter().validate_environment()
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX is written by transformers.exporters, with onnx and onnxscript ({str(error).splitlines()[0]}); "
            "pip install 'gqakit[onnx]'"
        ) from error
    return exporter_onnx


def write_onnx(source: ExportSource, out: Path) -> None:
    """Write the prefill graph, `input_ids` and `attention_mask` to `logits`, into an existing directory.

    The model is loaded whole, in float32. The graph has no cache: it is one forward pass.

    Raises:
        MissingDependencyError: see `load_exporter`. FamilyError: of another family.
        GqakitError: the exporter fails on this model.
    """
    exporter = load_exporter()
    if source.family not in FAMILIES:
        raise FamilyError(
            f"{source.path}: ONNX graphs are written of {', '.join(FAMILIES)}; this is {source.family}."
        )
    model: Any = load(source.path, dtype=torch.float32)
    model.config.use_cache = False
    model.generation_config = None
    ids = torch.arange(PROMPT[0] * PROMPT[1]).reshape(PROMPT) % int(source.full_config["vocab_size"])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        # torch prints each of its steps, and warns of what it deprecates in itself.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = exporter.OnnxExporter().export(model, inputs, config=exporter.OnnxConfig(dynamic=True))
            made.save_pretrained(str(out))
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GqakitError(
            f"{source.path}: transformers' ONNX exporter fails on it ({type(error).__name__}: {reason})"
        ) from error
