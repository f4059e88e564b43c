"""Plans and moments that do not belong: refused with the thing at fault named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, refused, succeeds
from tiny_fixtures import Models
from tiny_models import edit_json


@pytest.fixture
def plan(model: Models) -> Path:
    """A weights-only plan for the tiny Llama."""
    succeeds("plan", model(), "--kv-heads", 2, "--method", "neighbour", "-o", "plan.json")
    return Path("plan.json")


def carry_out(source: Path, *more: Any, says: tuple[str, ...]) -> None:
    """`gqakit convert --plan` refuses."""
    refused(6, "convert", source, "-o", "out", "--plan", "plan.json", *more, says=says)


def test_made_for_another_model(model: Models, plan: Path) -> None:
    carry_out(model(seed=1), says=("made for llama", "another model", "gqakit plan"))


@pytest.mark.parametrize("where", ["", "source", "budget"])
def test_an_unknown_key(model: Models, plan: Path, where: str) -> None:
    data = json.loads(plan.read_text())
    (data[where] if where else data)["kv_hedas"] = 2
    plan.write_text(json.dumps(data))
    name = f"{where}.kv_hedas" if where else "kv_hedas"
    carry_out(model(), says=(f"unknown key {name!r}",))
    refused(6, "plan", "show", plan, says=(f"unknown key {name!r}",))


def test_several_faults_are_named_at_once(model: Models, plan: Path) -> None:
    edit_json(plan, seed="zero", format="square", source=None)
    carry_out(model(), says=("seed", "format", "source"))


def test_another_version(model: Models, plan: Path) -> None:
    edit_json(plan, gqakit_plan=99)
    carry_out(model(), says=("version 99", "reads version 1"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_no_plan_at_all(model: Models, plan: Path, text: str) -> None:
    plan.write_text(text, encoding="latin-1")
    carry_out(model(), says=("plan.json",))


def test_a_plan_that_is_not_there(model: Models) -> None:
    carry_out(model(), says=("cannot read plan plan.json",))
    refused(6, "plan", "show", "nothing.json", says=("nothing.json",))
    refused(6, "plan", "diff", "nothing.json", "nothing.json", says=("nothing.json",))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 0, 0, 0, 1, 1, 1], "layer"),
        ([1, 1, 1, 1, 0, 0, 0, 0], "layers.0"),
        ([0, 0, 0, 0, 2, 2, 2, 2], "layers.0"),
        ([0, 0, 0, 1, 1, 1, 1, 1], "uniform"),
    ],
    ids=["too few", "not canonical", "a gap", "not uniform"],
)
def test_groups_that_are_none(model: Models, plan: Path, labels: list[int], says: str) -> None:
    data = json.loads(plan.read_text())
    data["layers"][0]["key"] = data["layers"][0]["value"] = labels
    plan.write_text(json.dumps(data))
    carry_out(model(), says=("plan.json", says))


def test_too_few_layers(model: Models, plan: Path) -> None:
    data = json.loads(plan.read_text())
    edit_json(plan, layers=data["layers"][:3])
    carry_out(model(), says=("3 layers planned, the source has 4",))


def test_a_merge_rule_that_is_not_known(model: Models, plan: Path) -> None:
    edit_json(plan, merging={"rule": "folk", "key": "folk", "value": "fold"})
    carry_out(model(), says=("folk",))


@pytest.fixture
def rested(model: Models) -> Path:
    """A plan that rests on moments in m.safetensors."""
    source = model(kv_heads=4)
    succeeds("calibrate", source, "-o", "m.safetensors", *SMALL)
    succeeds("plan", source, "--kv-heads", 2, "--statistics", "m.safetensors", "-o", "plan.json")
    return source


def test_moments_that_are_gone(rested: Path) -> None:
    Path("m.safetensors").rename("moved.safetensors")
    carry_out(rested, says=("m.safetensors", "--statistics", "calibrate"))
    carry_out(rested, "--statistics", "elsewhere.safetensors", says=("elsewhere.safetensors",))
    succeeds("convert", rested, "-o", "out", "--plan", "plan.json", "--statistics", "moved.safetensors")


def test_other_moments(rested: Path) -> None:
    succeeds("calibrate", rested, "-o", "other.safetensors", "--tokens", 128, "--window", 32)
    carry_out(rested, "--statistics", "other.safetensors", says=("other.safetensors", "same statistics"))


def test_moments_of_another_model(model: Models, rested: Path) -> None:
    other = model(kv_heads=4, seed=1)
    for command in (("plan", other, "-o", "p.json"), ("convert", other, "-o", "out")):
        says = ("were taken on", "not on", "gqakit calibrate")
        refused(6, *command, "--kv-heads", 2, "--statistics", "m.safetensors", says=says)


def test_moments_that_are_none(model: Models) -> None:
    command = ("plan", model(), "--kv-heads", 2, "-o", "p.json", "--statistics")
    refused(
        6, *command, model() / "model.safetensors", says=("holds no statistics of gqakit", "gqakit calibrate")
    )
    Path("text.txt").write_text("no safetensors")
    refused(6, *command, "text.txt", says=("text.txt",))
    refused(6, *command, "nothing.safetensors", says=("nothing.safetensors",))
    refused(6, *command, ".", says=(".",))
