"""The scripts that print the figures of the docs follow the code: they import, and their options parse."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from gqakit.models.load import load
from gqakit.models.source import Source
from gqakit.planning.options import BudgetOptions
from gqakit.planning.request import Request

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("script", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_script_imports_and_says_what_it_does(script, monkeypatch, capsys):
    module = importlib.import_module(script)
    assert module.__doc__
    if not hasattr(module, "main"):
        return
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.fixture
def bench(tmp_path):
    workbench = importlib.import_module("workbench")
    return workbench.Workbench(Source.open(GOLDEN / "model"), tmp_path / "no-wikitext", tmp_path)


def test_a_conversion_in_memory_scores_as_the_written_one(bench):
    common, language = map(importlib.import_module, ("common", "gqakit.evaluation.language"))
    plan, windows = bench.plan(2, None), bench.windows("evaluation", 2, 32)
    model = load(bench.source.path, dtype=torch.float32)
    common.convert_in_memory(model, common.all_layers(bench.source, None), plan)
    in_memory = language.score_language(model, windows, bench.reference)
    (written,) = bench.score(plan, None, [windows])
    assert in_memory.kl == pytest.approx(written.kl, rel=1e-4)
    assert written.kl > 0.01


@pytest.mark.parametrize("side", ["key", "value"])
def test_a_lever_reaches_the_conversion(bench, side):
    levers = importlib.import_module("levers")
    plan, windows = bench.plan(2, None, method="neighbour"), [bench.windows("evaluation", 2, 32)]
    usual = bench.score(plan, None, windows)
    with levers._metric(**{side: True}):
        assert bench.score(plan, None, windows) != usual
    assert bench.score(plan, None, windows) == usual


@pytest.mark.parametrize("experiment", ["asymgqa_experiment", "qcqa_experiment"])
def test_every_way_of_an_experiment_is_one_that_can_be_planned(experiment):
    ways, trials = importlib.import_module(experiment).WAYS, importlib.import_module("trials")
    spec = Source.open(GOLDEN / "model").spec
    requests = [
        Request.check(
            spec, BudgetOptions(kv_ratio=0.5), trials.Trial(way, how, "1/2", 1).plan_options, measurable=True
        )
        for way, how in ways.items()
    ]
    assert {request.options.seed for request in requests} == {0, 1}  # chance is in some of the methods
