"""A pretrained sentence embedder (all-MiniLM-L6-v2, 12 heads a layer) to half of its keys and values, measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretrained import BEST, PLAINEST, fetch_or_skip

import gqakit
from gqakit.evaluation.table import EvaluationRow
from zoo import MINILM

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvaluationRow]:
    """Converted with the bundled calibration text at reduced length, scored on the bundled held-out text."""
    source = str(fetch_or_skip(MINILM))
    folder = tmp_path_factory.mktemp("minilm")
    statistics = gqakit.calibrate(source, folder / "m.safetensors", tokens=4096, window=128).path
    measure = {"measure_tokens": 256, "window": 128}
    made: list[Path] = []
    for name, options in {"best": BEST, "plainest": PLAINEST}.items():
        plan = gqakit.plan(source, kv_ratio=0.5, statistics=statistics, **options, **measure)
        assert plan.budget.kv_ratio == pytest.approx(0.5)
        made.append(folder / name)
        gqakit.convert(source, made[-1], plan=plan, statistics=statistics, evaluate=False)
    found = gqakit.evaluate(source, list(map(str, made)), tokens=4096, window=64)
    return dict(zip(("source", "best", "plainest"), found, strict=True))


def test_half_of_the_heads_keep_the_embeddings_and_neighbour_mean_does_not(
    rows: dict[str, EvaluationRow],
) -> None:
    cosine = {name: row.scores.cosine for name, row in rows.items()}
    assert cosine["source"] == pytest.approx(1.0, abs=1e-6)
    assert cosine["best"] >= 0.95, cosine  # measured: 0.966
    assert cosine["plainest"] < 0.75, cosine  # measured: 0.592
    assert rows["best"].scores.neighbours > 0.75 > rows["plainest"].scores.neighbours


def test_an_encoder_has_half_of_the_keys_and_values(rows: dict[str, EvaluationRow]) -> None:
    assert rows["best"].kv_ratio == rows["plainest"].kv_ratio == 0.5
    assert rows["best"].kv_bytes_measured is None  # nothing of an encoder is kept
