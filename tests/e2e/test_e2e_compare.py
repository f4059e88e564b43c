"""`compare`: every cell at its budget, resumable, refused in one line, and a page that a browser shows without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import refused, succeeds

from gqakit.comparison.compare import PAGE, WORK
from gqakit.comparison.ways import way
from gqakit.errors import UsageError
from gqakit.evaluation.page.content import Similarity

SMALL = (
    *("--tokens", 256, "--window", 64, "--evaluate-tokens", 128, "--measure-tokens", 64),
    *("--ways", "neighbour-mean,optimal+aligned", "--kv-ratios", "1/2,0.25,0.01", "--max-new-tokens", 4),
)


@pytest.fixture(scope="module")
def source(model: Callable[..., Path]) -> Path:
    return model()


@pytest.fixture(scope="module")
def compared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a comparison, and what was printed."""
    out = tmp_path_factory.mktemp("compare") / "compared"
    ran = succeeds("compare", source, "-o", out, *SMALL)
    return out, ran.out


def cells(out: Path) -> dict[str, Any]:
    return {cell["name"]: cell for cell in json.loads((out / "comparison.json").read_text())["cells"]}


def test_every_way_meets_every_budget(compared: tuple[Path, str]) -> None:
    out, printed = compared
    found = cells(out)
    assert list(found) == [
        "original",
        *(
            f"{name} {budget}"
            for name in ("neighbour-mean", "optimal+aligned")
            for budget in ("1/2", "0.25", "0.01")
        ),
    ]
    for name, cell in found.items():
        assert name in printed
        if name.endswith("0.01"):  # one head per layer is 1/8
            assert "0.125" in cell["why_not"]
            assert not cell["scores"]
        elif name != "original":
            asked = {"1/2": 0.5, "0.25": 0.25}[cell["budget"]]
            assert cell["kv_ratio"] == asked
            assert cell["scores"]["kl"] > 0
            assert "--merge" in cell["command"]
            assert len(cell["layers"]) == 4
            assert cell["text"]
    assert found["original"]["scores"]["kl"] == 0
    assert not (out / WORK).exists(), "converted checkpoints go when they were scored"


def test_only_what_is_missing_is_made_again(compared: tuple[Path, str], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(compared[0], out)
    data = json.loads((out / "comparison.json").read_text())
    kept = [cell for cell in data["cells"] if cell["name"] != "optimal+aligned 1/2"]
    for cell in kept:
        cell["seconds"] = -1.0
    (out / "comparison.json").write_text(json.dumps({**data, "cells": kept}))
    succeeds("compare", source, "-o", out, *SMALL)
    again = cells(out)
    assert [name for name, cell in again.items() if cell["seconds"] >= 0] == ["optimal+aligned 1/2"]
    before = cells(compared[0])["optimal+aligned 1/2"]
    assert again["optimal+aligned 1/2"] | {"seconds": 0} == before | {"seconds": 0}


def test_another_comparison_is_not_mixed_in(compared: tuple[Path, str], source: Path) -> None:
    message = refused(7, "compare", source, "-o", compared[0], *SMALL, "--seed", 1)
    assert "seed" in message


def test_somebody_elses_file_is_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "comparison.json").write_text("{}")
    assert "not a comparison" in refused(7, "compare", source, "-o", out, *SMALL)
    assert (out / "comparison.json").read_text() == "{}"


def test_convert_and_repair_write_the_page_of_one_conversion(source: Path, tmp_path: Path) -> None:
    few = ("--tokens", 256, "--window", 64)
    out, page = tmp_path / "half", tmp_path / "half.html"
    succeeds("convert", source, "--kv-heads", 4, "-o", out, *few, "--report", page)
    assert '"name":"half"' in page.read_text()
    again = tmp_path / "repaired.html"
    to = ("--source", source, "-o", tmp_path / "repaired", "--report", again)
    succeeds("repair", out, *to, *few, "--steps", 1)
    assert '"name":"repaired"' in again.read_text()
    message = refused(2, "convert", source, "--kv-heads", 4, "-o", "x", "--no-evaluate", "--report", "p.html")
    assert "--report" in message


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--ways", "folded"), "did you mean"),
        (("--ways", "optimal+folded"), "merge rule"),
        (("--kv-ratios", "2"), "above 0 and at most 1"),
        (("--kv-ratios", "1/0"), "above 0 and at most 1"),
        (("--images", "here"), "--evaluate-images"),
    ],
)
def test_bad_input_is_one_line(source: Path, tmp_path: Path, given: tuple[str, ...], says: str) -> None:
    assert says.lower() in refused(2, "compare", source, "-o", tmp_path / "out", *given).lower()


def test_a_way_is_a_pair_of_method_and_merge_rule() -> None:
    assert way("asymgqa+fold").options == {"method": "asymgqa", "merge": "fold"}
    with pytest.raises(UsageError):
        way("asymgqa+")


def test_the_tree_joins_what_is_alike_first() -> None:
    import torch

    alike = torch.tensor([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]])
    found = Similarity.of("0", "keys", alike)
    assert found.leaves.index(0) in (found.leaves.index(2) - 1, found.leaves.index(2) + 1)
    assert [max(distances) for _, distances in found.tree] == pytest.approx([0.1, 0.85])


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture
def page(compared: tuple[Path, str]) -> Iterator[Any]:
    """The page in a headless browser; anything on its console, any error and any request fails the test."""
    api = pytest.importorskip("playwright.sync_api")
    complaints: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        opened = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="dark")
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "request", lambda request: complaints.append(request.url) if "file:" not in request.url else None
        )
        opened.goto((compared[0] / PAGE).as_uri())
        opened.wait_for_selector("#quality svg")
        yield opened
        browser.close()
    assert not complaints


@pytest.mark.skipif(BROWSER is None, reason="needs an installed Chromium")
def test_the_page_works_in_a_browser(page: Any) -> None:
    assert "smaller KV cache" in page.inner_text("h1")
    assert page.locator("#table tbody tr").count() == 5
    assert page.locator("#alike svg rect, #alike svg path").count() > 64
    # Another measure, another axis.
    page.select_option("#measure", "kl")
    page.wait_for_function("document.querySelector('#quality svg').textContent.includes('KL divergence')")
    # A way that is switched off leaves chart and table.
    page.uncheck("text=neighbour-mean")
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length === 3")
    # The calculator: half of the bytes are twice the context.
    page.fill("#memory", "1")
    longest = [row.inner_text().split("\t")[3] for row in page.locator("#fits tbody tr").all()]
    whole, half = (int(each.replace(",", "")) for each in (longest[0], longest[1]))
    assert half == pytest.approx(2 * whole, abs=2)
    # Values on hover.
    mark = page.locator("#quality svg .mark-symbol path").first
    mark.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "KV bytes per token" in page.inner_text("#vg-tooltip-element")


def test_the_page_is_whole_without_a_network(compared: tuple[Path, str]) -> None:
    text = (compared[0] / PAGE).read_text()
    assert len(text.encode()) < 3_000_000
    outside = text.replace("http://www.w3.org/", "").split("<script>")[0]
    assert "http" not in outside.split('id="data"')[0], "no style, font or picture from elsewhere"
