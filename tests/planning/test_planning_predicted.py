"""Predicted losses: nothing for duplicates, near to what is measured, and corrected where something is measured."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_models import build, edit_tensors

import gqakit
from gqakit.calibration.backward import collect_gradients
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.store import StatisticsFile, StatisticsHeader, save_statistics
from gqakit.core.grouping import Partition
from gqakit.data.samples import text_batches
from gqakit.errors import UsageError
from gqakit.models.source import Source
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.correct import corrected
from gqakit.planning.layer_loss.measure import Bench, Prober
from gqakit.planning.layer_loss.predict import Prediction

LAYERS = 4
PARTITIONS = [Partition(labels) for labels in ((0, 0, 1, 2), (0, 1, 0, 2), (0, 0, 1, 1))]


def windows() -> torch.Tensor:
    return torch.randint(3, 128, (8, 40), generator=torch.Generator().manual_seed(0))


def statistics_of(source: Source, path: Path, shift: int = 0) -> StatisticsFile:
    """With gradients; with a shift those of another layer."""
    spec, model = source.spec, gqakit.load(source.path, dtype=torch.float32)
    known = collect_statistics(model, spec, windows())
    gradients = collect_gradients(model, spec, windows().repeat(4, 1))
    header = StatisticsHeader(
        source=source.name, fingerprint=source.fingerprint, num_layers=LAYERS, width=32, tokens=320, tokens_asked=320,
        window=40, text="random", text_sha256="0",
    )  # fmt: skip
    return save_statistics(
        path,
        header,
        {spec.key(layer): each for layer, each in known.items()},
        {spec.key(layer): gradients[(layer + shift) % LAYERS] for layer in range(LAYERS)},
    )


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_predictions_are_near_what_is_measured_and_those_by_other_gradients_are_not(
    tmp_path: Path, family: str
) -> None:
    """Small losses within a factor of 1.5 on average, and ranked alike; qwen3's keys are merged behind their norm."""
    source = Source.open(build(tmp_path / "model", family, kv_heads=4))
    known = statistics_of(source, tmp_path / "s.safetensors")
    wrong = statistics_of(source, tmp_path / "w.safetensors", shift=1)
    behind = family == "qwen3"
    read = LayerReader(source, known, behind_norm=behind)
    batches = text_batches(windows(), cached=True)
    bench = Bench("fold", batches, "cpu")
    prober = Prober(bench, read)
    off: dict[str, list[float]] = {"right": [], "wrong": []}
    for layer in range(1, LAYERS):  # in the first, losses are too large for a second order
        by = {"right": Prediction(known, "fold"), "wrong": Prediction(wrong, "fold")}
        for side in ("key", "value"):
            keys = [(layer, side, partition.labels) for partition in PARTITIONS]
            for (_, _, labels), loss in prober.measure(layer, keys):  # pyright: ignore[reportArgumentType]
                for name, prediction in by.items():
                    predicted = prediction.of_layer(layer, read)(side, Partition(labels))  # pyright: ignore[reportArgumentType]
                    off[name].append(abs(math.log(loss / predicted)))
    average = {name: sum(each) / len(each) for name, each in off.items()}
    assert average["right"] < math.log(1.5)
    assert average["wrong"] > 2 * average["right"]


def test_exact_duplicates_lose_nothing(tmp_path: Path) -> None:
    def duplicate(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "layers.1" in name and ("k_proj" in name or "v_proj" in name):
                tensor.view(4, 4, -1)[2] = tensor.view(4, 4, -1)[0]

    folder = build(tmp_path / "model", kv_heads=4)
    edit_tensors(folder, duplicate)
    source = Source.open(folder)
    known = statistics_of(source, tmp_path / "s.safetensors")
    loss = Prediction(known, "fold").of_layer(1, LayerReader(source, known))
    for side in ("key", "value", "both"):
        others = loss(side, Partition((0, 0, 1, 2)))  # pyright: ignore[reportArgumentType]
        assert loss(side, Partition((0, 1, 0, 2))) < 1e-6 * others  # pyright: ignore[reportArgumentType]
        assert loss(side, Partition.identity(4)) == 0  # pyright: ignore[reportArgumentType]


def test_what_was_measured_corrects_what_was_not() -> None:
    predicted = [{1: 4.0, 2: 2.0, 3: 1.0, 4: 0.0}, {1: 8.0, 2: 1.0}]
    found = corrected(predicted, [{3: 2.0, 1: 4.0}, {}])
    assert found[0] == pytest.approx({1: 4.0, 2: 4.0, 3: 2.0, 4: 0.0})  # 2 is nearer to 3 than to 1
    assert found[1] == pytest.approx({1: 8.0 * 2**0.5, 2: 2**0.5})  # as the others on average
    assert corrected(predicted, [{}, {}]) == predicted


def test_a_model_that_cannot_be_differentiated_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gqakit.calibration import backward

    def refuse(*args: Any, **how: Any) -> None:
        raise backward.NoGradientError("its kernel has no derivative")

    monkeypatch.setattr("gqakit.calibration.calibrate.collect_gradients", refuse)
    monkeypatch.chdir(tmp_path)
    source = build(tmp_path / "model", kv_heads=4)
    small: dict[str, Any] = {"window": 32, "progress": False}
    with caplog.at_level(logging.WARNING, logger="gqakit"):
        known = gqakit.calibrate(source, "s.safetensors", tokens=128, **small)
    assert (
        sum(
            "cannot be differentiated here (its kernel has no derivative)" in line for line in caplog.messages
        )
        == 1
    )
    assert known.took_gradients
    assert not known.has_gradients
    how: dict[str, Any] = {"statistics": known.path, "kv_ratio": 0.5, "measure_tokens": 64, **small}
    assert gqakit.plan(source, **how).layer_loss == "measured"
    with pytest.raises(
        UsageError, match="`layer_loss=predicted` needs calibration statistics with gradients"
    ):
        gqakit.plan(source, layer_loss="predicted", **how)
