"""Plans that spend the budget over the layers: by the command line, interrupted, constrained, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import QUICK, gqakit, refused, succeeds
from test_e2e_matrix import loads_and_generates
from tiny_fixtures import Models

from gqakit.planning.layer_loss.file import LossFile
from gqakit.planning.plan import Plan

KNAPSACK = ("--allocation", "knapsack", "--layer-loss", "error")
MEASURE = ("--measure-tokens", 64, "--window", 32)


def planned(source: Path, moments: Path, *options: Any) -> Plan:
    """A plan made by the command line."""
    succeeds("plan", source, "--statistics", moments, "-o", "plan.json", "-q", *options)
    return Plan.load(Path("plan.json"))


def test_convert_measures_and_spends_by_default(model: Models) -> None:
    source = model(kv_heads=4)
    succeeds("convert", source, "-o", "out", "--kv-ratio", 0.5, *QUICK)
    plan = Plan.load(Path("out/gqakit-plan.json"))
    assert (plan.allocation, plan.layer_loss) == ("knapsack", "measured")
    assert plan.budget.kv_ratio <= 0.5
    assert len(Path("out.losses.jsonl").read_text().splitlines()) == 1 + 4 * 3
    succeeds("verify", source, "out")
    loads_and_generates(source, Path("out"))


def test_an_interrupted_measurement_goes_on_and_gives_the_same_plan(
    model: Models, moments: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(kv_heads=4)
    command = ("plan", source, "--kv-ratio", 0.5, "--statistics", moments(source), "-q", *MEASURE)
    succeeds(*command, "--layer-loss", "measured", "--losses", "whole.jsonl", "-o", "whole.json")
    add, added = LossFile.add, []

    def interrupted(self: LossFile, key: Any, loss: float) -> None:
        if len(added) == 5:
            raise KeyboardInterrupt
        added.append(key)
        add(self, key, loss)

    with monkeypatch.context() as patch:
        patch.setattr(LossFile, "add", interrupted)
        assert gqakit(*command, "--losses", "part.jsonl", "-o", "part.json").code == 130
    assert not Path("part.json").exists()
    assert len(Path("part.jsonl").read_text().splitlines()) == 1 + 5
    again: list[Any] = []
    monkeypatch.setattr(LossFile, "add", lambda self, key, loss: (again.append(key), add(self, key, loss)))
    succeeds(*command, "--losses", "part.jsonl", "-o", "part.json")
    assert len(again) == 4 * 3 - 5
    assert Path("part.json").read_bytes() == Path("whole.json").read_bytes()
    assert Path("part.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_losses_of_another_text_are_refused(model: Models, moments: Models) -> None:
    source = model(kv_heads=4)
    command = (
        "plan",
        source,
        "--kv-ratio",
        0.5,
        "--statistics",
        moments(source),
        "-q",
        "--losses",
        "l.jsonl",
    )
    succeeds(*command, *MEASURE)
    refused(6, *command, "--measure-tokens", 96, "--window", 32, says=("another windows", "--losses"))


@pytest.mark.parametrize("loss", ["error", "objective", "measured"])
@pytest.mark.parametrize("allocation", ["knapsack", "qcqa_layers"])
def test_keys_and_values_apart(model: Models, moments: Models, allocation: str, loss: str) -> None:
    source = model("qwen2", kv_heads=4)
    how = ("--kv-maps", "separate", "--allocation", allocation, "--layer-loss", loss, *MEASURE)
    plan = planned(source, moments(source), "--kv-ratio", 0.6, *how)
    assert any(not grouping.is_shared for grouping in plan.groupings)
    assert plan.budget.kv_ratio <= 0.6
    assert "no engine but transformers" in plan.engines
    assert (
        "no engine but transformers keeps keys and values apart" in succeeds("plan", "show", "plan.json").out
    )
    succeeds("convert", source, "-o", "out", "--plan", "plan.json", "--statistics", moments(source))
    succeeds("verify", source, "out")
    loads_and_generates(source, Path("out"))


def test_constraints_hold(model: Models, moments: Models) -> None:
    source = model()
    even = planned(source, moments(source), "--kv-ratio", 0.6, "--kv-multiple-of", 2, *KNAPSACK)
    assert {g.key.num_groups % 2 for g in even.groupings} == {0}
    small = planned(source, moments(source), "--kv-ratio", 0.7, "--max-group-size", 2, *KNAPSACK)
    assert max(size for g in small.groupings for size in g.key.sizes) == 2
    equal = planned(source, moments(source), "--kv-ratio", 0.6, "--cardinality", "equal", *KNAPSACK)
    assert all(g.key.is_equal for g in equal.groupings)
    assert len({g.key.num_groups for g in equal.groupings}) > 1
    text = succeeds("plan", "show", "plan.json").out
    assert "equal group sizes" in text
    assert "certain to have the least error" in text


def test_a_uniform_plan_chooses_one_number_for_all(model: Models, moments: Models) -> None:
    source = model()
    plan = planned(
        source, moments(source), "--kv-ratio", 0.6, "--format", "uniform", "--allocation", "knapsack"
    )
    assert plan.format == "uniform"
    assert {g.key.num_groups for g in plan.groupings} == {4}


@pytest.mark.parametrize("stages", ["--one-stage", "--two-stage"])
def test_qcqa_writes_its_fronts(model: Models, moments: Models, stages: str) -> None:
    source = model()
    how = ("--method", "qcqa", "--population", 12, "--generations", 6, "--merge", "mean", "--seed", 3, stages)
    front = ("--pareto", "front.json", "--plot", "front.png")
    plan = planned(source, moments(source), "--kv-ratio", 0.5, *how, *front)
    assert plan.method_options["population"] == 12
    assert plan.method_options["one_stage"] == (stages == "--one-stage")
    assert plan.layer_loss == "objective"
    assert plan.allocation == ("one_stage" if stages == "--one-stage" else "qcqa_layers")
    data = json.loads(Path("front.json").read_text())
    assert Path("front.png").read_bytes().startswith(b"\x89PNG")
    model_front = data["model"]
    assert [p["kv_ratio"] for p in model_front] == sorted(p["kv_ratio"] for p in model_front)
    losses = [p["loss"] for p in model_front]
    assert losses == sorted(losses, reverse=True)
    within = [p for p in model_front if p["kv_ratio"] <= 0.5]
    assert within[-1]["kv_ratio"] == plan.budget.kv_ratio
    for layer in data["layers"]:
        for point in layer["points"]:
            assert point["best"] <= point["objective"] + 1e-9
            assert point["best"] <= point["neighbour"] + 1e-9
    if stages == "--two-stage":
        assert [p["kv_heads"] for p in data["layers"][0]["points"]] == list(range(1, 9))
    best = {p["kv_ratio"]: p["objective"] for p in data["references"]["best"]}
    assert all(p["objective"] >= best[p["kv_ratio"]] - 1e-9 for p in model_front if p["kv_ratio"] in best)


def test_correlate_prints_a_table_and_draws(model: Models, moments: Models) -> None:
    source = model(kv_heads=4)
    how = ("--layers", 2, "--random", 3, "--kv-heads", 3, *MEASURE)
    ran = succeeds("correlate", source, "--statistics", moments(source), *how, "--plot", "c.png", "--json")
    found = json.loads(ran.out)
    assert {row["proxy"] for row in found["rows"]} >= {"optimal", "qcqa", "activation_similarity"}
    assert len(found["samples"]) >= 2 * 4
    assert all(sample["loss"] > 0 and sample["kv_heads"] == 3 for sample in found["samples"])
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    table = succeeds("correlate", source, "--statistics", moments(source), *how, "-q").out
    assert "weight-sharing error (QCQA)" in table
    assert "KL to the source" in table
    assert "the measured loss itself" in table
    refused(
        2, "correlate", source, "--statistics", moments(source), "--kv-heads", 4, says=("must be 1 to 3",)
    )
