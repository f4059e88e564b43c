"""The figures that tests/e2e/test_real_quality.py holds each merge rule to: KL of SmolLM2 converted by it.

    python benchmarks/quality_gate.py

Every fifth layer of SmolLM2-135M-Instruct keeps 2 of its 3 KV heads, the first two merged; calibrated on 1,024 tokens of the
text that comes with gqakit, measured on 256 of the held-out one, in windows of 256. In memory, so that a run takes seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from common import Table, arguments, environment
from gqakit.calibration.calibrate import calibrate
from gqakit.calibration.store import StatisticsFile
from gqakit.core.apply import apply_grouping, in_source_shape
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import RULES
from gqakit.data.batches import batches_of
from gqakit.data.text import read_text
from gqakit.evaluation.language import score_language
from gqakit.models.layers import parameters_of_layer, tensors_of_layer
from gqakit.models.running import load_model
from gqakit.models.source import Source
from gqakit.planning.layer_features import LayerReader
from zoo import SMOLLM2, fetch

GROUPING = Grouping.shared(Partition((0, 0, 1)))
EVERY = 5
"""Layers from one that is converted to the next."""


def divergences(model: Path) -> dict[str, float]:
    """Mean `KL(source ‖ converted)` in nats per predicted token, by merge rule."""
    source = Source.open(model)
    with tempfile.TemporaryDirectory() as folder:
        taken = calibrate(model, Path(folder) / "s.safetensors", tokens=1024, window=256, progress=False)
        return _measured(source, taken)


@torch.inference_mode()
def _measured(source: Source, statistics: StatisticsFile) -> dict[str, float]:
    batches: list[Any] = [*batches_of(source, read_text(["evaluation"]), window=256, tokens=256)]
    reference, running = load_model(source.checkpoint), load_model(source.checkpoint)
    read, found = LayerReader(source, statistics), {}
    for name, rule in RULES.items():
        for layer in range(0, source.spec.num_layers, EVERY):
            features = read(layer)
            merged = apply_grouping(features.weights, GROUPING, features.key, features.value, rule, rule)
            tensors = tensors_of_layer(source.spec, layer, in_source_shape(merged, GROUPING))
            parameters = parameters_of_layer(source.spec, running, layer)
            for tensor_name, tensor in tensors.items():
                parameters[tensor_name].copy_(tensor)
        found[name] = score_language(running, batches, reference).kl
    return found


def main() -> None:
    """Measure and print."""
    arguments(__doc__ or "").parse_args()
    print(environment())
    table = Table("SmolLM2, 2 of 3 KV heads in every fifth layer", "merge rule", "KL to the source, nats")
    for name, value in divergences(fetch(SMOLLM2)).items():
        table.row(name, f"{value:.4f}")


if __name__ == "__main__":
    main()
