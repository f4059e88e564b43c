"""Searches, constraints and allocations that cannot be: refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import refused, succeeds
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_fixtures import Models

CASES: dict[str, tuple[int, tuple[Any, ...], tuple[str, ...]]] = {
    "no generations": (2, ("--method", "qcqa", "--generations", 0), ("generations = 0", "at least 1")),
    "no population": (2, ("--method", "qcqa", "--population", 1), ("population = 1", "at least 4")),
    "no stage": (
        2,
        ("--allocation", "qcqa_layers", "--generations", 0),
        ("allocation qcqa_layers", "generations = 0"),
    ),
    "no probability": (2, ("--method", "asymgqa", "--p-accept", 1.5), ("p_accept = 1.5", "at most 1")),
    "no similarity": (2, ("--method", "asymgqa", "--similarity", "looks"), ("similarity", "looks")),
    "an option of another method": (
        2,
        ("--method", "neighbour", "--population", 9),
        ("--population is no option of method neighbour",),
    ),
    "no cardinality": (
        2,
        ("--cardinality", "odd"),
        ("unknown value of --cardinality 'odd'", "arbitrary, equal"),
    ),
    "no maps": (2, ("--kv-maps", "both"), ("unknown value of --kv-maps 'both'",)),
    "apart and uniform": (
        2,
        ("--kv-maps", "separate", "--format", "uniform"),
        ("--kv-maps separate needs --format grouped",),
    ),
    "no multiple": (2, ("--kv-multiple-of", 0), ("--kv-multiple-of is 0", "at least 1")),
    "a multiple of too many": (5, ("--kv-multiple-of", 9), ("layer 0", "--kv-multiple-of")),
    "groups too small": (5, ("--max-group-size", 1), ("0.5", "smallest that can be met", "is 1.0000")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_refused(model: Models, command: str, case: str) -> None:
    code, options, says = CASES[case]
    out = "out" if command == "convert" else "plan.json"
    refused(code, command, model(), "-o", out, "--kv-ratio", 0.5, *options, says=says)


def test_a_cardinality_that_does_not_divide(model: Models) -> None:
    says = ("8 KV heads do not divide into 3", "--kv-heads 1, 2, 4, 8")
    refused(5, "plan", model(), "-o", "p.json", "--kv-heads", 3, "--cardinality", "equal", says=says)


def test_groups_of_query_heads_smaller_than_the_source_s(model: Models) -> None:
    says = ("--max-group-size 1", "2 query heads share each KV head already")
    refused(5, "plan", model(kv_heads=4), "-o", "p.json", "--kv-ratio", 1, "--max-group-size", 1, says=says)


@pytest.mark.parametrize("labels", [[0, 1, 2, 9, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0, 0, 0], [1] * 8])
def test_labels_out_of_range(model: Models, labels: list[int]) -> None:
    succeeds("plan", model(), "--kv-heads", 2, "--method", "neighbour", "-o", "plan.json")
    data = json.loads(Path("plan.json").read_text())
    data["layers"][1]["key"] = labels
    Path("plan.json").write_text(json.dumps(data))
    refused(6, "convert", model(), "-o", "out", "--plan", "plan.json", says=("layers.1", "not canonical"))


@pytest.mark.parametrize("method", ["optimal", "qcqa", "asymgqa", "aligned", "keydriven"])
def test_moments_that_are_not_numbers(model: Models, moments: Models, method: str) -> None:
    source = model()
    with safe_open(moments(source), "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["layers.2.input"] = torch.full_like(tensors["layers.2.input"], torch.nan)
    save_file(tensors, "damaged.safetensors", metadata=metadata)
    command = ("plan", source, "-o", "p.json", "--kv-ratio", 0.5, "--method", method)
    says = ("layer 2", "not finite", "gqakit calibrate")
    refused(6, *command, "--statistics", "damaged.safetensors", says=says)


def test_a_file_of_losses_that_is_none(model: Models, moments: Models) -> None:
    source = model()
    Path("notes.txt").write_text("not losses\n")
    command = ("plan", source, "-o", "p.json", "--kv-ratio", 0.5, "--statistics", moments(source))
    refused(6, *command, "--losses", "notes.txt", "--window", 32, says=("holds no losses",))


def test_correlate_with_moments_of_another_model(model: Models, moments: Models) -> None:
    refused(6, "correlate", model(seed=1), "--statistics", moments(model()), says=("gqakit calibrate",))
