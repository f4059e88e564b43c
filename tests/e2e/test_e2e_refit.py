"""`convert --refit`: keeps what was converted, changes only output projections, and only for the better."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import QUICK, refused, succeeds
from tiny_fixtures import Models

from gqakit.checkpoint import Checkpoint


@pytest.mark.parametrize(("family", "format"), [("llama", "grouped"), ("qwen2", "uniform")])
def test_refit_changes_output_projections_alone(model: Models, family: str, format: str) -> None:
    source = model(family)
    size = ("--tokens", 2048, "--window", 64, "--no-evaluate")
    how = ("--kv-heads", 2, "--format", format, "--method", "neighbour", "--merge", "mean", *size)
    succeeds("convert", source, "-o", "plain", *how)
    succeeds("convert", source, "-o", "refitted", *how, "--refit")
    plain, refitted = Checkpoint.open("plain"), Checkpoint.open("refitted")
    record = json.loads((Path("refitted") / "gqakit-refit.json").read_text())
    changed = {name for name in plain.tensors if not torch.equal(plain.load(name), refitted.load(name))}
    fitted = {
        f"model.layers.{index}.self_attn.o_proj.weight"
        for index, layer in enumerate(record["layers"])
        if layer["ridge"] is not None
    }
    assert changed == fitted
    assert changed, "on random weights a refit always has something to gain"
    assert all(layer["error_after"] <= layer["error_before"] for layer in record["layers"])
    assert plain.config == refitted.config
    assert "refitted" in (Path("refitted") / "README.md").read_text()
    assert not Path("refitted.unfitted").exists()
    succeeds("verify", source, "refitted")


def test_refit_needs_a_held_out_window_and_says_so_first(model: Models) -> None:
    args = ("--kv-heads", 2, "--tokens", 32, "--window", 32, "--no-evaluate", "--refit")
    refused(9, "convert", model(), "-o", "out", *args, says=("two windows",))


def test_options_beside_a_plan_are_refused(model: Models) -> None:
    succeeds("plan", model(), "--kv-heads", 2, "--method", "neighbour", "-o", "plan.json")
    args = ("-o", "out", "--plan", "plan.json", "--merge", "mean", "--seed", 1)
    refused(2, "convert", model(), *args, says=("--merge, --seed", "gqakit plan"))


def test_heads_that_a_format_cannot_take_are_said_before_calibrating(model: Models) -> None:
    args = ("-o", "out", "--kv-heads", 3, "--format", "uniform", *QUICK)
    refused(5, "convert", model(), *args, says=("--kv-heads 1, 2, 4, 8", "grouped"))
