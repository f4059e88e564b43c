"""`compare`: every cell at its budget, resumable, refused in one line, and a page that a browser shows without a network."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import refused, succeeds
from family_models import build_family
from tiny_models import tokenizer

from gqakit.calibration.calibrate import calibrate_source
from gqakit.calibration.options import CalibrateOptions
from gqakit.comparison import compare as comparison
from gqakit.comparison.caches import cache_points
from gqakit.comparison.compare import PAGE, WORK
from gqakit.comparison.forecast import making_times
from gqakit.comparison.trials import Trial
from gqakit.comparison.ways import way
from gqakit.conversion.options import ConvertOptions
from gqakit.data.text import read_text
from gqakit.errors import UsageError
from gqakit.evaluation.page.content import Similarity
from gqakit.models.source import Source
from gqakit.planning.layers import looking_once
from gqakit.progress import silent

SMALL = (
    *("--tokens", 256, "--window", 64, "--evaluate-tokens", 128, "--measure-tokens", 64),
    *("--ways", "neighbour-mean,neighbour+aligned", "--kv-ratios", "1/2,0.25,0.01", "--max-new-tokens", 4),
    *("--kv-cache", "int8/4", "--kv-cache", "int4/4,int2/4+h", "--kv-cache", "f16"),
)
CACHES = {"int8/4": 12 / 16, "int4/4,int2/4+h": (8 + 6) / 32}
"""Bits of the types, and 16 more for every 4 channels, against 16."""


@pytest.fixture(scope="module")
def source(model: Callable[..., Path]) -> Path:
    return model()


@pytest.fixture(scope="module")
def compared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a comparison, and what was printed."""
    out = tmp_path_factory.mktemp("compare") / "compared"
    ran = succeeds("compare", source, "-o", out, *SMALL)
    return out, ran.out


def commands_of(page: Path) -> list[str]:
    """The commands that a page shows, of its points that have one."""
    _, _, behind = page.read_text().partition('id="data">')
    data = json.loads(behind.partition("</script>")[0])
    return [point["command"] for point in data["points"] if point["command"]]


def cells(out: Path) -> dict[str, Any]:
    return {cell["name"]: cell for cell in json.loads((out / "comparison.json").read_text())["cells"]}


def test_every_way_meets_every_budget_in_every_cache(compared: tuple[Path, str]) -> None:
    out, printed = compared
    found = cells(out)
    made = [
        f"{way} {budget}" for way in ("neighbour-mean", "neighbour+aligned") for budget in ("1/2", "0.25")
    ]
    impossible = ["neighbour-mean 0.01", "neighbour+aligned 0.01"]  # one head per layer is 1/8
    scored = [called for name in ("original", *made) for called in (name, *(f"{name}, {c}" for c in CACHES))]
    assert sorted(found) == sorted(scored + impossible)
    for name in impossible:
        assert name in printed
        assert "0.125" in found[name]["why_not"]
        assert not found[name]["scores"]
    source_bytes = 2 * (8 + 8) * 4 * 4  # 16 bits, 8 key and 8 value heads of 4 channels, 4 layers
    for name in scored:
        cell = found[name]
        heads = {"": 1, "1/2": 0.5, "0.25": 0.25}[cell["budget"]]
        assert name in printed
        assert cell["kv_ratio"] == heads * CACHES.get(cell["cache"], 1)
        assert cell["kv_bytes"] == source_bytes * cell["kv_ratio"]
        assert cell["text"]
        assert bool(cell["layers"]) == (cell["way"] != "original")
        assert (cell["scores"]["kl"] > 0) == (name != "original")
    for name in ("original", *made):  # fewer bits lose more
        plain, fine, coarse = (
            found[called]["scores"]["kl"] for called in (name, *(f"{name}, {c}" for c in CACHES))
        )
        assert abs(fine - plain) < abs(coarse - plain)
    assert not (out / WORK).exists(), "converted checkpoints go when they were scored"


def test_commands_make_rows_again(compared: tuple[Path, str], source: Path) -> None:
    found = cells(compared[0])
    made, scored = (
        shlex.split(found[f"neighbour+aligned 1/2{cache}"]["command"]) for cache in ("", ", int8/4")
    )
    succeeds(*made[1:], "--no-evaluate")
    again = json.loads(succeeds(*scored[1:], "--json", "-q").out)["checkpoints"]
    rows = {row["kv_cache"]: row["scores"]["kl"] for row in again if row["name"] == made[-1]}
    assert rows == {"int8/4": pytest.approx(found["neighbour+aligned 1/2, int8/4"]["scores"]["kl"], rel=1e-5)}


def test_only_what_is_missing_is_made_again(
    compared: tuple[Path, str],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "again"
    shutil.copytree(compared[0], out)
    data = json.loads((out / "comparison.json").read_text())
    gone = ["neighbour+aligned 1/2", "neighbour+aligned 1/2, int8/4", "neighbour-mean 0.25, int8/4"]
    kept = [{**cell, "seconds": -1.0} for cell in data["cells"] if cell["name"] not in gone]
    (out / "comparison.json").write_text(json.dumps({**data, "cells": kept}))
    conversions: list[str] = []
    convert = comparison.convert
    monkeypatch.setattr(
        comparison, "convert", lambda *a, **k: (conversions.append(Path(a[1]).name), convert(*a, **k))[1]
    )
    caplog.set_level("INFO", "gqakit.steps")
    succeeds("compare", source, "-o", out, *SMALL)
    assert conversions == ["neighbour-mean-0.25", "neighbour+aligned-1-of-2"], "one for all its caches"
    assert "3 points of 2 conversions will take about" in caplog.text
    assert "calibrating" not in caplog.text, "which is there"
    found, before = cells(out), cells(compared[0])
    assert sorted(name for name, cell in found.items() if cell["seconds"] >= 0) == sorted(gone)
    for name in gone:
        assert found[name] | {"seconds": 0} == before[name] | {"seconds": 0}
    conversions.clear()
    succeeds("compare", source, "-o", out, *SMALL)
    assert not conversions


def test_time_is_foreseen_for_what_conversions_take(source: Path, tmp_path: Path) -> None:
    """Of the first budget of a way, whose layers are looked at once; more where that is repaired; none of what cannot be."""
    text = read_text(["calibration"])
    how = CalibrateOptions(tokens=256, window=64, gradients=True)
    opened = Source.open(source)
    statistics = calibrate_source(opened, tmp_path / "statistics.safetensors", text, how, silent)
    fold = way("fold")
    asked = [
        (
            Trial(fold, name, ratio, repaired),
            ConvertOptions(kv_ratio=ratio, text=text, measure_tokens=64, repair=repaired, repair_tokens=64),
        )
        for name, ratio, repaired in (
            ("1/2", 0.5, False),
            ("1/4", 0.25, False),
            ("x", 0.01, False),
            ("1/2", 0.5, True),
        )
    ]
    with looking_once():
        first, second, impossible, repaired = making_times(opened, statistics, asked, 1.0, silent)
        assert impossible is None
        # At a second per token: of 7 groupings of each of 4 layers a third is measured for each of three budgets, by running
        # half of the layers.
        measured = 7 * 4 / 3 * 64 / 2
        assert first == pytest.approx(measured, abs=20)
        assert second == pytest.approx(measured, abs=1)
        assert repaired is not None
        assert repaired > 160 * 512 * 0.5


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
    # The command on the page makes it again.
    for made, written in ((out, page), (tmp_path / "repaired", again)):
        before = (made / "model.safetensors").read_bytes()
        shutil.rmtree(made)
        (command,) = commands_of(written)
        succeeds(*shlex.split(command)[1:])
        assert (made / "model.safetensors").read_bytes() == before
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
        (("--kv-cache", "q8_0"), "blocks of 32 channels"),  # heads have 4
        (("--kv-cache", "int8/4", "--kv-cache", "q4"), "unknown cache type 'q4'"),
        (("--kv-cache", "int8/4,int4/4,int2/4"), "names 3 cache types"),
    ],
)
def test_bad_input_is_one_line(source: Path, tmp_path: Path, given: tuple[str, ...], says: str) -> None:
    assert says.lower() in refused(2, "compare", source, "-o", tmp_path / "out", *given).lower()


def test_tasks_are_measures_like_others(source: Path, tmp_path: Path) -> None:
    """Of every checkpoint in every cache, as `evaluate --tasks` has them."""
    pytest.importorskip("lm_eval")
    questions, out = tmp_path / "questions.jsonl", tmp_path / "compared"
    lines = [
        {
            "question": f"The cat {n}",
            "choices": {"text": ["sat", "the mat"], "label": ["A", "B"]},
            "answerKey": "AB"[n % 2],
        }
        for n in range(6)
    ]
    questions.write_text("\n".join(map(json.dumps, lines)))
    asked = ("--tasks", questions, "--limit", 4)
    small = (
        *SMALL[:8],
        "--ways",
        "neighbour-mean",
        "--kv-ratios",
        "1/2",
        "--kv-cache",
        "int8/4",
        "--max-new-tokens",
        0,
    )
    ran = succeeds("compare", source, "-o", out, "--keep", *small, *asked)
    found = cells(out)
    for metric in ("acc on questions", "acc_norm on questions"):
        assert metric in ran.out.replace("\n", " ")
        assert all(0 <= cell["scores"][metric] <= 1 for cell in found.values())
    rows = json.loads(
        succeeds("evaluate", source, out / "neighbour-mean-1-of-2", *asked, "--json", "-q").out
    )["checkpoints"]
    for row, name in zip(rows, ("original", "neighbour-mean 1/2"), strict=True):
        for each in row["results"]:
            assert found[name]["scores"][f"{each['metric']} on questions"] == pytest.approx(each["value"])
    _, _, behind = (out / PAGE).read_text().partition('id="data">')
    data = json.loads(behind.partition("</script>")[0])
    assert [each["name"] for each in data["measures"]][-2:] == ["acc on questions", "acc_norm on questions"]
    with questions.open("a") as file:  # what is asked is compared, not how the file is called
        file.write("\n" + json.dumps(lines[0]))
    refused(7, "compare", source, "-o", out, "--keep", *small, *asked, says=("other settings", "task data"))
    refused(7, "compare", source, "-o", out, *small, says=("other settings", "--overwrite"))
    refused(2, "compare", source, "-o", out, *small, "--limit", 4, says=("--limit", "--tasks"))


def test_a_model_without_a_cache_has_no_types_of_one(tmp_path: Path) -> None:
    encoder = build_family(tmp_path / "bert", "bert")
    tokenizer().save_pretrained(encoder)
    message = refused(2, "compare", encoder, "-o", tmp_path / "out", "--kv-cache", "int8/4")
    assert "--kv-cache int8/4: a bert keeps no keys and values in a cache" in message
    assert cache_points(None, Source.open(encoder).spec) == ()


@pytest.mark.parametrize(
    ("head_dim", "expected"), [(64, ["q8_0", "q4_0+h"]), (32, ["q8_0", "q4_0"]), (8, [])]
)
def test_types_that_are_compared_by_default(
    model: Callable[..., Path], head_dim: int, expected: list[str]
) -> None:
    spec = Source.open(model("mistral", head_dim=head_dim)).spec
    assert [pair.name for pair in cache_points(None, spec)] == expected
    assert cache_points("f16", spec) == ()


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
    assert page.locator("#table tbody tr").count() == 15
    assert page.locator("#alike svg rect, #alike svg path").count() > 64
    # Another measure, another axis.
    page.select_option("#measure", "kl")
    page.wait_for_function("document.querySelector('#quality svg').textContent.includes('KL divergence')")
    # A way that is switched off leaves chart and table.
    page.uncheck("text=neighbour-mean")
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length === 9")
    # So does a type of cache, and the frontier is that of what is left: fewer bytes are never better here.
    frontier = page.locator("#table tr.frontier").count()
    page.uncheck("#caches >> text=int8/4")
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length === 6")
    assert page.locator("#table tr.frontier").count() < frontier
    page.check("#caches >> text=int8/4")
    page.uncheck("#caches >> text=int4/4,int2/4+h")
    page.uncheck("#caches >> text=int8/4")
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


@pytest.mark.skipif(BROWSER is None, reason="needs an installed Chromium")
def test_each_checkpoint_is_listed_once_where_heads_are_shown(page: Any) -> None:
    shown = [each.inner_text() for each in page.locator("#shown option").all()]
    assert shown == [
        f"{way} {budget}" for way in ("neighbour-mean", "neighbour+aligned") for budget in ("1/2", "0.25")
    ]
    # No engine has types that are for study alone.
    rounded = page.locator("#fits tbody tr", has_text="int8/4")
    assert rounded.count() == 5
    assert all("does not run it" in row.inner_text() for row in rounded.all())


@pytest.mark.skipif(BROWSER is None, reason="needs an installed Chromium")
def test_every_control_of_the_page_draws_anew(page: Any) -> None:
    def changes(act: Callable[[], Any], *drawn: str) -> None:
        before = {each: page.inner_html(each) for each in drawn}
        act()
        for each, html in before.items():
            page.wait_for_function(
                "([at, was]) => document.querySelector(at).innerHTML !== was", arg=[each, html]
            )

    changes(lambda: page.uncheck("#log"), "#quality")
    changes(lambda: page.select_option("#layer", "3"), "#alike", "#tree")
    changes(lambda: page.select_option("#side", "values"), "#alike", "#tree")
    changes(lambda: page.select_option("#shown", "neighbour+aligned 0.25"), "#groups", "#kept", "#errors")
    changes(lambda: page.fill("#context", "1000"), "#fits")
    changes(lambda: page.select_option("#engine", page.locator("#engine option").last.inner_text()), "#fits")
    changes(lambda: page.locator("#quality .role-legend-label text").first.click(force=True), "#quality")
    assert page.locator("#quality [opacity='0.12']").count() > 0, "a click in the legend singles a way out"
    text = page.inner_text("#settings")
    assert all(name in text for name in ("seed", "fingerprint", "versions", "calibrated on"))


def test_the_page_is_whole_without_a_network(compared: tuple[Path, str]) -> None:
    text = (compared[0] / PAGE).read_text()
    assert len(text.encode()) < 3_000_000
    outside = text.replace("http://www.w3.org/", "").split("<script>")[0]
    assert "http" not in outside.split('id="data"')[0], "no style, font or picture from elsewhere"
