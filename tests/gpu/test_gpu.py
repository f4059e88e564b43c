"""What must hold where a GPU is found: the same figures as on the CPU, whole and block by block, in float32 and bfloat16."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_models import build

import gqakit
from gqakit.core.statistics import LayerStatistics
from gqakit.errors import UsageError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
SMALL: dict[str, Any] = {
    "kv_heads": 2,
    "method": "neighbour",
    "merge": "mean",
    "evaluate": False,
    "device": "cpu",
}
HOW: dict[str, Any] = {"tokens": 300, "window": 64, "progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("gpu") / "model")


@pytest.mark.parametrize("blockwise", ["never", "always"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_statistics_are_those_of_the_cpu(model: Path, blockwise: str, dtype: str, tolerance: float) -> None:
    there = {"blockwise": blockwise, "dtype": dtype, **HOW}
    ours = gqakit.calibrate(model, model.with_name("gpu.safetensors"), device="cuda:0", **there)
    theirs = gqakit.calibrate(model, model.with_name("cpu.safetensors"), device="cpu", **HOW)
    for layer in range(ours.header.num_layers):
        for field in fields(LayerStatistics):
            mine, its = (getattr(each.layer(layer), field.name) for each in (ours, theirs))
            if mine is not None:
                assert (mine - its).norm() <= tolerance * its.norm(), (layer, field.name)


@pytest.mark.parametrize("blockwise", ["never", "always"])
def test_scores_are_those_of_the_cpu(model: Path, tmp_path: Path, blockwise: str) -> None:
    gqakit.convert(model, tmp_path / "out", **SMALL, **HOW)
    where = {"gpu": {"device": "cuda", "dtype": "float32", "blockwise": blockwise}, "cpu": {"device": "cpu"}}
    found = {name: gqakit.evaluate(model, [tmp_path / "out"], **how, **HOW) for name, how in where.items()}
    for mine, its in zip(found["gpu"], found["cpu"], strict=True):
        assert mine.perplexity == pytest.approx(its.perplexity, rel=1e-3)
        assert mine.scores.kl == pytest.approx(its.scores.kl, rel=1e-2, abs=1e-5)


def test_repair_runs_there(model: Path, tmp_path: Path) -> None:
    gqakit.convert(model, tmp_path / "out", **SMALL, **HOW)
    how = {"source": model, "tokens": 600, "window": 32, "steps": 8, "evaluate": False, "progress": False}
    layers = gqakit.repair(tmp_path / "out", device="cuda", dtype="float32", **how).layers
    assert all(layer.error_after < layer.error_before for layer in layers)


def test_a_gpu_that_is_not_there(model: Path) -> None:
    with pytest.raises(UsageError, match="torch sees"):
        gqakit.evaluate(model, device=f"cuda:{torch.cuda.device_count()}", **HOW)
