"""A pretrained vision transformer (DINOv2-S, 6 heads a layer) to half of its keys and values, on drawn images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pretrained import PLAINEST, fetch_or_skip

import gqakit
from gqakit.data.samples import Images
from zoo import DINOV2_SMALL

pytestmark = pytest.mark.real

SIDE = 168  # pixels, 12 × 12 patches


def drawn(count: int, seed: int) -> Images:
    """Discs and boxes of any colour over smooth noise, lit from one side: not natural, but edges, textures and objects."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE))) + 1 / SIDE
    images = np.empty((count, SIDE, SIDE, 3))
    for image in images:
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, SIDE, SIDE))) / frequency).real
        texture = np.moveaxis(noise / noise.std(), 0, -1)
        image[:] = rng.uniform(60, 200, 3) + 40 * texture
        for _ in range(rng.integers(1, 5)):
            across, down = abs(x - rng.uniform()), abs(y - rng.uniform())
            distance = np.hypot(across, down) if rng.uniform() < 0.5 else np.maximum(across, down)
            inside = distance < rng.uniform(0.08, 0.35)
            image[inside] = rng.uniform(0, 255, 3) + 10 * texture[inside]
        image *= (0.7 + 0.6 * x)[..., None]
    return Images(f"{count} drawings", images.clip(0, 255).round().astype(np.uint8), SIDE)


def test_half_of_the_heads_keep_the_features_and_neighbour_mean_does_not(tmp_path: Path) -> None:
    source = str(fetch_or_skip(DINOV2_SMALL))
    statistics = gqakit.calibrate(source, tmp_path / "m.safetensors", images=drawn(32, seed=0)).path
    fold = {"method": "aligned", "merge": "fold", "allocation": "uniform", "format": "grouped"}
    made: list[str] = []
    for name, options in {"fold": fold, "plainest": PLAINEST}.items():
        made.append(str(tmp_path / name))
        gqakit.convert(source, made[-1], kv_ratio=0.5, statistics=statistics, evaluate=False, **options)
    rows = gqakit.evaluate(source, made, images=drawn(16, seed=1))
    cosine = [row.scores.cosine for row in rows]
    assert [row.kv_ratio for row in rows] == [1, 0.5, 0.5]
    assert cosine[0] == pytest.approx(1.0, abs=1e-6)
    assert cosine[1] > 0.95, cosine  # measured: 0.971
    assert cosine[2] < 0.75, cosine  # measured: 0.546
