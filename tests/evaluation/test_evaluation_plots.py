"""The plot is a file that an image viewer opens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gqakit.errors import MissingDependencyError
from gqakit.evaluation import drawing
from gqakit.evaluation.language import LanguageScores
from gqakit.evaluation.plots import plot_quality
from gqakit.evaluation.table import EvaluationRow


def row(name: str, kib: int, perplexity: float) -> EvaluationRow:
    """One checkpoint."""
    return EvaluationRow(name, kib * 1024, kib * 1024.0, kib / 45, LanguageScores(perplexity, 0.1, 0.9, 10))


SOURCE = row("source", 45, 38.6)
SERIES = {
    "neighbour mean": [row("mean-2", 30, 449.0), row("mean-1", 15, 13408.0)],
    "fold": [row("fold-1", 15, 70.2), row("fold-2", 30, 45.5)],
}


@pytest.mark.parametrize(
    ("ending", "magic"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_ending_decides_the_format(tmp_path: Path, ending: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / f"quality.{ending}"
    plot_quality(path, "A title", SOURCE, SERIES)
    data = path.read_bytes()
    assert data.startswith(magic)
    assert len(data) > 8_000


def test_the_png_is_large_enough_and_not_blank(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import image, pyplot

    plot_quality(tmp_path / "quality.png", "A title", SOURCE, SERIES, "what it was made by")
    pixels = image.imread(tmp_path / "quality.png")
    assert pixels.shape[0] >= 600
    assert pixels.shape[1] >= 1000
    assert 0.005 < (pixels[..., 3] > 0).mean() < 0.5  # the page shows through where nothing is drawn
    assert (pixels[-30:, :400, 3] > 0.5).any()  # the line below
    assert pyplot.get_fignums() == []  # closed again


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117", "#1e2129"])
def test_text_and_colours_stand_out_on_light_and_on_dark_pages(page: str) -> None:
    def contrast(colour: str) -> float:
        low, high = sorted((luminance(colour), luminance(page)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(drawing.INK) > 3.9
    assert all(contrast(colour) > 2.7 for colour in (drawing.BASELINE, drawing.FOLD, *drawing.COLOURS))


def test_the_same_method_has_the_same_colour_in_every_plot() -> None:
    found = drawing.colours_of(["neighbour (GQA)", "QCQA-EC", "fold", "fold, a tenth of the rate"])
    assert found["neighbour (GQA)"] == drawing.colours_of(["GQA"])["GQA"] == drawing.BASELINE
    assert found["fold"] == drawing.colours_of(["a", "b", "fold"])["fold"] == drawing.FOLD
    assert len(set(found.values())) == 4


def test_without_matplotlib_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"gqakit\[plot\]"):
        plot_quality(tmp_path / "quality.png", "A title", SOURCE, SERIES)
