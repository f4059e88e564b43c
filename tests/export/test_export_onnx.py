"""The ONNX graph of a grouped model computes what the model does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused, succeeds
from tiny_models import prompt_ids

import gqakit
from gqakit.checkpoint.workspace import claim
from gqakit.exporters.export import ONNX_FILES

Models = Callable[..., Path]


@pytest.mark.filterwarnings(
    "ignore"
)  # torch.onnx and onnxscript warn at import of what they deprecate in each other
def test_prefill_is_the_same(grouped: Models) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("transformers.exporters")
    source = grouped("llama", "one", num_hidden_layers=1)
    claim(
        Path("out.partial"), ONNX_FILES
    )  # as a run leaves it that was killed in the middle of the exporter's writing
    for left in ("out.partial/tmpab12/model.onnx.data", "out.partial/export.json"):
        Path(left).parent.mkdir(exist_ok=True)
        Path(left).write_text("half")
    ran = succeeds("export", source, "--to", "onnx", "-o", "out")
    assert "it has no cache" in ran.out
    assert "[torch.onnx]" not in ran.out
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"} <= {
        p.name for p in Path("out").iterdir()
    }
    assert not list(Path("out").glob("tmp*"))
    assert "half" not in Path("out/export.json").read_text()
    assert not Path("out.partial").exists()
    session = runtime.InferenceSession("out/model.onnx")
    model = gqakit.load(source, dtype=torch.float32)
    for length in (5, 17):  # neither is the length of the sample it was traced with
        ids = prompt_ids(length)
        with torch.inference_mode():
            expected = model(input_ids=ids).logits.numpy()
        feed = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())}
        np.testing.assert_allclose(session.run(["logits"], feed)[0], expected, rtol=0, atol=1e-4)
    refused(7, "export", source, "--to", "onnx", "-o", "out", says=("not empty", "--overwrite"))


def test_without_the_packages(grouped: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.exporters", None)
    refused(10, "export", grouped(), "--to", "onnx", "-o", "out", says=("gqakit[onnx]",))
    refused(2, "export", grouped(), "--to", "onnx", "--dtype", "f16", "-o", "out", says=("--dtype",))
