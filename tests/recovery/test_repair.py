"""`repair`: only for the better, only where the plan changed something, and the same however often it was killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from command import QUICK, gqakit, refused, succeeds
from tiny_fixtures import Models
from tiny_models import all_tensors, edit_json, edit_tensors, hashes

from gqakit.checkpoint import Checkpoint
from gqakit.errors import UsageError
from gqakit.recovery.repair import layers as training
from gqakit.recovery.repair import repair as repairing
from gqakit.recovery.repair.fit import FitSchedule
from gqakit.recovery.repair.layers import RepairJob
from gqakit.recovery.repair.options import RepairOptions

SIZE = ("--tokens", 1024, "--window", 64, "--steps", 6, "--no-evaluate")
MEAN = ("--method", "neighbour", "--merge", "mean", *QUICK)


@pytest.fixture
def plain(model: Models) -> Callable[..., Path]:
    """Converts a tiny model to 2 KV heads in `plain`, once for each choice; returns the source."""

    def get(**options: Any) -> Path:
        source = model(**options)
        if source not in _converted:
            kept = source.with_name("plain")
            succeeds("convert", source, "-o", kept, "--kv-heads", 2, *MEAN)
            _converted[source] = kept
        shutil.copytree(_converted[source], "plain")
        return source

    return get


_converted: dict[Path, Path] = {}


def record(out: str = "fixed") -> dict[str, Any]:
    return json.loads((Path(out) / "gqakit-repair.json").read_text())


def repaired(source: Path, *args: Any, out: str = "fixed") -> dict[str, Any]:
    succeeds("repair", "plain", "--source", source, "-o", out, *SIZE, *args)
    return record(out)


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("llama", ("--kv-heads", 3, "--format", "grouped")),  # unequal groups
        ("qwen2", ("--kv-heads", 2, "--format", "uniform")),
        ("qwen3", ("--kv-ratio", 0.4, "--allocation", "knapsack", "--layer-loss", "error")),
        ("mistral", ("--kv-ratio", 0.4, "--kv-maps", "separate", "--layer-loss", "error")),
    ],
)
def test_repair_helps_and_touches_only_attention_that_was_converted(
    model: Models, family: str, how: tuple[Any, ...]
) -> None:
    source = model(family)
    succeeds("convert", source, "-o", "plain", *how, *MEAN)
    before = hashes(Path("plain"))
    layers = repaired(source)["layers"]
    assert hashes(Path("plain")) == before
    plain, fixed = Checkpoint.open("plain"), Checkpoint.open("fixed")
    changed = {name for name in plain.tensors if not torch.equal(plain.load(name), fixed.load(name))}
    assert {name.split(".")[2] for name in changed} == {str(i) for i, x in enumerate(layers) if x["repaired"]}
    assert all("_proj." in name and ".self_attn." in name for name in changed)
    if family == "qwen2":
        assert any(name.endswith("q_proj.bias") for name in changed)
    assert all(layer["error_after"] <= layer["error_before"] for layer in layers)
    assert sum(layer["error_after"] for layer in layers) < sum(x["error_before"] for x in layers)
    assert plain.config == fixed.config
    for name in ("gqakit-plan.json", "LICENSE"):
        assert (Path("plain") / name).read_bytes() == (Path("fixed") / name).read_bytes()
    assert "gqakit-repair.json" in (Path("fixed") / "README.md").read_text()
    assert not Path("fixed.repair").exists()
    succeeds("verify", source, "fixed")


def test_maps_behind_a_normalisation_are_fitted_too(model: Models) -> None:
    source = model("qwen3")
    succeeds("convert", source, "-o", "plain", "--kv-heads", 3, "--tokens", 1024, *QUICK)
    repaired(source)
    plain, fixed = Checkpoint.open("plain"), Checkpoint.open("fixed")
    changed = {name for name in plain.tensors if not torch.equal(plain.load(name), fixed.load(name))}
    layers = [layer for layer in record()["layers"] if layer["repaired"]]
    assert layers
    for norm in ("q_norm", "k_norm"):
        assert sum(name.endswith(f"{norm}.maps") for name in changed) == len(layers)
    assert not any(name.endswith("norm.weight") for name in changed)
    succeeds("verify", source, "fixed")


def test_a_plan_that_changes_nothing_is_left_alone(model: Models) -> None:
    source = model()
    succeeds("convert", source, "-o", "plain", "--kv-heads", 8, *MEAN)
    layers = repaired(source)["layers"]
    assert not any(layer["repaired"] for layer in layers)
    assert (Path("plain") / "model.safetensors").read_bytes() == (
        Path("fixed") / "model.safetensors"
    ).read_bytes()
    assert all(layer["error_before"] == layer["error_after"] < 1e-9 for layer in layers)


def duplicate(tensors: dict[str, torch.Tensor]) -> None:
    """Make KV heads 0 and 1, 2 and 3, … of every layer the same."""
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = tensor.view(4, 2, -1, *tensor.shape[1:])
            heads[:, 1] = heads[:, 0]


def test_heads_that_were_the_same_stay_merged_without_error(copy: Models) -> None:
    source = copy()
    edit_tensors(source, duplicate)
    succeeds("convert", source, "-o", "plain", "--kv-heads", 4, *MEAN)
    layers = repaired(source)["layers"]
    assert not any(layer["repaired"] for layer in layers)
    assert max(layer["error_after"] for layer in layers) < 1e-9


@pytest.mark.parametrize("stopped_at", [0, 3])
def test_a_killed_run_goes_on_to_the_same_bytes(
    plain: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    source = plain(sharded=True)
    repaired(source, out="whole")
    fit, seen = training.fit, []

    def interrupted(*args: Any) -> None:
        seen.append(args[0].layer)
        fit(*args)
        if args[0].layer == stopped_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", interrupted)
        ran = gqakit("repair", "plain", "--source", source, "-o", "fixed", *SIZE)
        assert ran.code == 130
        assert not Path("fixed").exists()
        assert Path("fixed.repair").is_dir()
        other = ("repair", "plain", "--source", source, "-o", "fixed", *SIZE, "--seed", 1)
        refused(7, *other, says=("unfinished repair", "--overwrite"))
        patch.setattr(training, "fit", lambda *args: (seen.append(args[0].layer), fit(*args)))
        seen.clear()
        repaired(source)
    assert seen == list(range(stopped_at, 4))
    assert hashes(Path("fixed")) == hashes(Path("whole"))


def test_stopped_while_writing(plain: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = plain()
    repaired(source, out="whole")

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "write_checkpoint", stop)
        assert gqakit("repair", "plain", "--source", source, "-o", "fixed", *SIZE).code == 130
        patch.undo()
        patch.setattr(training, "fit", stop)  # nothing is fitted again
        repaired(source)
    assert hashes(Path("fixed")) == hashes(Path("whole"))


def test_the_seed_decides(plain: Callable[..., Path]) -> None:
    source = plain()
    repaired(source, out="a")
    repaired(source, out="b")
    repaired(source, "--seed", 1, out="c")
    assert hashes(Path("a")) == hashes(Path("b"))
    assert hashes(Path("a"))["model.safetensors"] != hashes(Path("c"))["model.safetensors"]


def test_half_precision_is_written_as_it_was_and_judged_as_written(plain: Callable[..., Path]) -> None:
    source = plain(dtype=torch.bfloat16)
    layers = repaired(source)["layers"]
    assert any(layer["repaired"] for layer in layers)
    assert {tensor.dtype for tensor in all_tensors(Path("fixed")).values()} == {torch.bfloat16}


def test_convert_repairs_too(model: Models) -> None:
    source = model()
    args = ("--kv-heads", 2, "--method", "neighbour", "--merge", "mean", "--window", 64, "--no-evaluate")
    succeeds("convert", source, "-o", "plain", *args, "--tokens", 1024)
    repaired(source)
    both = ("--repair", "--repair-tokens", 1024, "--repair-steps", 6)
    succeeds("convert", source, "-o", "at-once", *args, "--tokens", 1024, *both)
    assert hashes(Path("at-once"))["model.safetensors"] == hashes(Path("fixed"))["model.safetensors"]
    assert record("at-once")["layers"] == record()["layers"]
    assert not Path("at-once.unrepaired").exists()
    succeeds("verify", source, "at-once")


def test_convert_and_repair_killed_go_on(model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    args = (model(), "--kv-heads", 2, "--repair", "--repair-tokens", 1024, "--repair-steps", 4, *QUICK)
    succeeds("convert", *args, "-o", "whole")
    fit, seen = training.fit, []

    def counted(*given: Any) -> None:
        seen.append(given[0].layer)
        if seen == [0, 1]:
            raise KeyboardInterrupt
        fit(*given)

    monkeypatch.setattr(training, "fit", counted)
    assert gqakit("convert", *args, "-o", "fixed").code == 130
    succeeds("convert", *args, "-o", "fixed")
    assert seen == [0, 1, 1, 2, 3]
    assert hashes(Path("fixed"))["model.safetensors"] == hashes(Path("whole"))["model.safetensors"]
    assert record() == record("whole")


def test_repair_measures_before_and_after(plain: Callable[..., Path]) -> None:
    source = plain()
    args = ("--tokens", 1024, "--window", 64, "--steps", 6)
    ran = succeeds("repair", "plain", "--source", source, *args)
    assert "plain-repaired" in ran.out
    assert len([line for line in ran.out.splitlines() if line.startswith("plain")]) == 2
    assert "plain-repaired" in (Path("plain-repaired") / "README.md").read_text()


def test_a_fit_that_diverges_stops_and_keeps_what_was_done(
    plain: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plain()
    fit = training.fit

    def diverges(job: Any, *rest: Any) -> None:
        if job.layer == 2:
            job.parameters[0].fill_(torch.inf)
        fit(job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", diverges)
        ran = gqakit("repair", "plain", "--source", source, "-o", "fixed", *SIZE)
    assert ran.code == 1
    assert "layer 2, step 0: the error is nan" in ran.err
    assert not Path("fixed").exists()
    assert sorted(path.name for path in Path("fixed.repair").glob("layer-*")) == [
        "layer-000.safetensors",
        "layer-001.safetensors",
    ]


def test_what_cannot_be_repaired(model: Models, plain: Callable[..., Path]) -> None:
    source = plain()
    Path("empty.txt").write_text(" \n")
    Path("short.txt").write_text("Only a few words, and no more than that. " * 3)
    succeeds("repair", "plain", "--source", source, "-o", "fixed", *SIZE)
    at = ("-o", "new", *SIZE)
    refused(6, "repair", source, "--source", source, *at, says=("no conversion", "gqakit-plan.json"))
    refused(6, "repair", "plain", "--source", model(seed=1), *at, says=("another model",))
    refused(2, "repair", "fixed", "--source", source, *at, says=("repaired already",))
    refused(3, "repair", "nowhere", "--source", source, *at)
    refused(9, "repair", "plain", "--source", source, *at, "--text", "empty.txt", says=("empty",))
    refused(9, "repair", "plain", "--source", source, *at, "--text", "short.txt", says=("two windows",))
    refused(7, "repair", "plain", "--source", source, "-o", "fixed", *SIZE, says=("not empty",))
    refused(7, "repair", "plain", "--source", source, "-o", "plain", *SIZE, "--overwrite")
    refused(2, "repair", "plain", "--source", source, *at, "--steps", 0, says=("--steps is 0",))
    wrong = gqakit("repair", "plain", "--source", source, *at, "--device", "tpu")
    assert (wrong.code, "'tpu'" in wrong.err) == (2, True)
    edit_json(Path("plain") / "config.json", num_key_value_heads=4)
    assert gqakit("repair", "plain", "--source", source, *at).code in (4, 6)


def test_options_are_checked_at_once() -> None:
    with pytest.raises(UsageError, match=r"`steps` is 0.*`learning_rate` is -1.*`seed` is -1"):
        RepairOptions(source="model", steps=0, learning_rate=-1, seed=-1)
    with pytest.raises(UsageError, match="`source` must be given"):
        RepairOptions.of({"steps": 2})


def test_a_layer_that_is_near_takes_small_steps() -> None:
    job = cast(RepairJob, SimpleNamespace(options=RepairOptions(source="model", learning_rate=0.1)))
    far, near = (RepairJob.schedule(job, 256, error) for error in (0.09, 0.0001))
    assert (far.learning_rate, near.learning_rate) == (pytest.approx(0.03), pytest.approx(0.001))
    assert far.batch == 2


def test_every_window_is_seen_once_before_any_comes_again() -> None:
    seen = torch.cat(list(FitSchedule(steps=10, batch=3, learning_rate=1.0, seed=0).order(5, layer=1)))
    for start in range(0, 30, 5):
        assert sorted(seen[start : start + 5].tolist()) == list(range(5))
