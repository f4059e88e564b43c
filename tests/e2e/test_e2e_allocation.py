"""Plans that spend the budget over the layers: by the command line, interrupted, constrained, drawn."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import QUICK, gqakit, refused, succeeds
from test_e2e_matrix import loads_and_generates
from tiny_fixtures import Models
from tiny_models import all_tensors

from gqakit.planning.layer_loss.file import LossFile
from gqakit.planning.plan import Plan

KNAPSACK = ("--allocation", "knapsack", "--layer-loss", "error")
MEASURE = ("--measure-tokens", 64, "--window", 32)


def planned(source: Path, moments: Path, *options: Any) -> Plan:
    """A plan made by the command line."""
    succeeds("plan", source, "--statistics", moments, "-o", "plan.json", "-q", *options)
    return Plan.load(Path("plan.json"))


@pytest.mark.parametrize(("loss", "most"), [("predicted", None), ("corrected", 4 * 3), ("measured", 4 * 3)])
def test_convert_weighs_losses_and_spends(model: Models, loss: str, most: int | None) -> None:
    source, asked = model(kv_heads=4), () if loss == "corrected" else ("--layer-loss", loss)
    succeeds("convert", source, "-o", "out", "--kv-ratio", 0.5, *QUICK, *asked)
    plan = Plan.load(Path("out/gqakit-plan.json"))
    assert (plan.allocation, plan.layer_loss) == ("knapsack", loss)
    assert plan.budget.kv_ratio <= 0.5
    kept = Path("out.losses.jsonl")
    assert kept.is_file() == (most is not None)
    if most is not None:
        assert 4 <= len(kept.read_text().splitlines()) - 1 <= most
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


def partitions(heads: int) -> Iterator[list[list[int]]]:
    """Every way to part heads into groups."""
    if heads == 0:
        yield []
        return
    last = heads - 1
    for groups in partitions(last):
        for index, group in enumerate(groups):
            yield [*groups[:index], [*group, last], *groups[index + 1 :]]
        yield [*groups, [last]]


def sharing_errors(heads: torch.Tensor) -> dict[tuple[int, ...], float]:
    """For every group of heads `[heads, numbers]` the paper's weight-sharing error: squared distances from its mean."""
    groups = (g for size in range(1, len(heads) + 1) for g in itertools.combinations(range(len(heads)), size))
    return {g: float((heads[[*g]] - heads[[*g]].mean(0)).square().sum()) for g in groups}


def test_qcqa_writes_its_fronts(model: Models, moments: Models) -> None:
    source = model()
    how = ("--method", "qcqa", "--population", 12, "--generations", 6, "--merge", "mean", "--seed", 3)
    front = ("--pareto", "front.json", "--plot", "front.png")
    plan = planned(source, moments(source), "--kv-ratio", 0.5, *how, *front)
    assert plan.method_options["population"] == 12
    assert plan.layer_loss == "objective"
    assert plan.allocation == "qcqa_layers"
    data = json.loads(Path("front.json").read_text())
    assert Path("front.png").read_bytes().startswith(b"\x89PNG")
    model_front = data["model"]
    assert [p["kv_ratio"] for p in model_front] == sorted(p["kv_ratio"] for p in model_front)
    losses = [p["loss"] for p in model_front]
    assert losses == sorted(losses, reverse=True)
    within = [p for p in model_front if p["kv_ratio"] <= 0.5]
    assert within[-1]["kv_ratio"] == plan.budget.kv_ratio
    for layer in data["layers"]:
        assert [p["kv_heads"] for p in layer["points"]] == list(range(1, 9))


def test_the_fronts_and_their_references_are_what_brute_force_finds(model: Models, moments: Models) -> None:
    """Objectives and the optimum beside them, computed here from the weights alone."""
    source = model()
    how = ("--method", "qcqa", "--population", 12, "--generations", 6, "--merge", "mean", "--seed", 3)
    planned(source, moments(source), "--kv-ratio", 0.5, *how, "--pareto", "front.json")
    data = json.loads(Path("front.json").read_text())
    tensors = all_tensors(source)
    every = list(partitions(8))
    assert len(every) == 4140  # Bell's number
    least: list[list[float]] = []
    for layer in data["layers"]:
        prefix = f"model.layers.{layer['layer']}.self_attn"
        heads = torch.cat(
            [
                tensors[f"{prefix}.{name}.weight"].double().unflatten(0, (8, -1)).flatten(1)
                for name in ("k_proj", "v_proj")
            ],
            dim=1,
        )
        errors = sharing_errors(heads)
        best: dict[int, float] = {}
        for groups in every:
            total = sum(errors[tuple(group)] for group in groups)
            best[len(groups)] = min(best.get(len(groups), math.inf), total)
        for point in layer["points"]:
            groups = [[h for h in range(8) if point["labels"][h] == g] for g in range(point["kv_heads"])]
            found = sum(errors[tuple(group)] for group in groups)
            assert point["objective"] == pytest.approx(found, rel=1e-4, abs=1e-6)
            assert point["best"] == pytest.approx(best[point["kv_heads"]], rel=1e-4, abs=1e-6)
        least.append([best[count] for count in range(1, 9)])
    spent = {0: 0.0}  # the least total for every number of heads in all: layer by layer
    for layer in least:
        sums: dict[int, float] = {}
        for kept, total in spent.items():
            for count, error in enumerate(layer, start=1):
                sums[kept + count] = min(sums.get(kept + count, math.inf), total + error)
        spent = sums
    compared = 0
    for point in data["references"]["best"]:
        kept = round(point["kv_ratio"] * 8 * len(least))
        assert point["objective"] == pytest.approx(spent[kept], rel=1e-4, abs=1e-6)
        compared += 1
    assert compared > 8
    for point in data["model"]:
        assert point["objective"] >= spent[sum(point["kv_heads"])] * (1 - 1e-4)


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
