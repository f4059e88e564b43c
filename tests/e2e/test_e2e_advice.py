"""What commands say to somebody fits the model at hand: its unit, its data, its positions."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from command import QUICK, SMALL, refused, succeeds
from family_models import build_family
from tiny_models import tokenizer

from gqakit.models.inspection import inspect


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    np.savez("images.npz", x=pixels)
    return build_family(tmp_path / "vit", "vit")


def test_images_are_counted_as_images_and_measured_on_images(vit: Path) -> None:
    images = ("--images", "images.npz")
    assert "over 6 images of images.npz" in succeeds("calibrate", vit, "-o", "s.safetensors", *images).out
    how = ("--kv-ratio", "0.5", "--statistics", "s.safetensors", "--layer-loss", "error")
    assert "6 images (s.safetensors)" in succeeds("plan", vit, *how, "-o", "plan.json").out
    succeeds("convert", vit, "--plan", "plan.json", "-o", "out")
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "- Calibration: 6 images\n" in card
    assert "Not measured. `gqakit evaluate` with `--images` does it." in card
    succeeds("evaluate", vit, "out", *images)


def test_text_is_counted_in_tokens(tmp_path: Path) -> None:
    source = build_family(tmp_path / "bert", "bert")
    tokenizer().save_pretrained(source)
    assert "over 256 tokens of" in succeeds("calibrate", source, "-o", "s.safetensors", *SMALL).out
    succeeds("convert", source, "-o", "out", "--kv-ratio", "0.5", *QUICK)
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "- Calibration: 256 tokens\n" in card
    assert "Not measured. `gqakit evaluate` does it." in card


def test_the_next_command_that_is_named_runs(vit: Path) -> None:
    """Its model has a path with a space; what is printed is for a shell."""
    source = vit.rename(vit.with_name("a model"))
    out = succeeds("convert", source, "-o", "o ut", "--kv-ratio", "0.5", "--images", "images.npz").out
    (line,) = (line for line in out.splitlines() if line.startswith("Next: gqakit "))
    assert "FAILED" not in succeeds(*shlex.split(line.removeprefix("Next: gqakit "))).out


@pytest.mark.parametrize(
    ("family", "positions"), [("gpt2", 128), ("whisper", 20), ("bart", 64), ("llama", 32_768), ("t5", 32_768)]
)
def test_a_cache_is_no_longer_than_learned_positions(family: str, positions: int, tmp_path: Path) -> None:
    source = build_family(tmp_path / "model", family)
    assert inspect(source).context == positions
    assert inspect(source, context=256).context == 256


@pytest.mark.parametrize("family", ["bert", "whisper", "vit"])
def test_bench_says_before_it_loads_that_nothing_is_written(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build_family(tmp_path / "model", family)
    monkeypatch.setattr("gqakit.evaluation.bench.load_model", lambda *a: pytest.fail("loaded"))
    refused(4, "bench", source, says=("writes text after a context", "does not do"))
