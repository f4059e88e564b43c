"""The same command gives the same bytes: again, in another process, and after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import QUICK, SMALL, gqakit, refused, succeeds
from tiny_fixtures import Models
from tiny_models import hashes

import gqakit as package
from gqakit.checkpoint import MANIFEST_NAME, writer
from gqakit.errors import CheckpointError

Run = Callable[[], object]


def twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Run, second: Run) -> None:
    """Two runs of one command, each in an empty directory, leave the same bytes."""
    for name, run in (("here", first), ("there", second)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        run()
    here, there = hashes(tmp_path / "here"), hashes(tmp_path / "there")
    assert here == there
    assert {"out/gqakit-plan.json", "out/config.json", "out.statistics.safetensors"} <= here.keys()


def test_the_same_command_gives_the_same_bytes_again(
    model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model("qwen2", kv_heads=4, sharded=True, dtype=torch.bfloat16)
    command = ("convert", source, "-o", "out", "--kv-ratio", 0.5, *SMALL, "--evaluate")
    twice(tmp_path, monkeypatch, lambda: succeeds(*command), lambda: succeeds(*command))


def test_the_same_command_gives_the_same_bytes_in_another_process(
    model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("convert", model("llama", kv_heads=4), "-o", "out", "--kv-ratio", 0.75, *QUICK)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, "-m", "gqakit", *map(str, command)]
    twice(
        tmp_path,
        monkeypatch,
        lambda: succeeds(*command),
        lambda: subprocess.run(alone, env=environment, check=True, capture_output=True),
    )


def test_random_groups_depend_on_the_seed_alone(model: Models) -> None:
    source = model("llama")
    how = ("--kv-heads", 3, "--method", "random", "--merge", "mean")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeeds("plan", source, *how, "--seed", seed, "-o", f"{name}.json")
    a, b, c = (Path(f"{name}.json").read_bytes() for name in "abc")
    assert a == b != c
    groups = [[layer["key"] for layer in json.loads(text)["layers"]] for text in (a, c)]
    assert groups[0] != groups[1]


def interrupted(monkeypatch: pytest.MonkeyPatch, target: str, name: str, after: int, *args: object) -> None:
    """Run a command that is interrupted at a call of a function."""
    module = __import__(target, fromlist=["_"])
    real, calls = getattr(module, name), []

    def stop(*given: object, **named: object) -> object:
        calls.append(given)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        ran = gqakit(*args)
    assert ran.code == 130, ran.err
    assert "interrupted; the same command goes on where it stopped" in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    ("sharded", "target", "name", "after"),
    [
        (True, writer.__name__, "write_shard", 3),
        (True, "gqakit.conversion.convert", "convert_layer", 2),
        (False, "gqakit.conversion.convert", "convert_layer", 1),
        (False, writer.__name__, "copy_side_files", 0),
    ],
    ids=["between shards", "inside a shard", "inside the only shard", "after the shards"],
)
def test_an_interrupted_run_is_visibly_unfinished_and_can_be_continued(
    model: Models,
    moments: Models,
    monkeypatch: pytest.MonkeyPatch,
    sharded: bool,
    target: str,
    name: str,
    after: int,
) -> None:
    source = model("llama", kv_heads=4, sharded=sharded)
    how = ("--kv-heads", 2, "--statistics", moments(source))
    succeeds("convert", source, "-o", "whole", *how)
    command = ("convert", source, "-o", "out", *how, "--json")
    interrupted(monkeypatch, target, name, after, *command)

    out = Path("out")
    assert (out / MANIFEST_NAME).is_file()
    assert not (out / "config.json").exists()
    refused(3, "inspect", out, says=("unfinished", "Run the same conversion again"))
    refused(3, "verify", source, out, says=("unfinished",))
    with pytest.raises(CheckpointError):
        package.load(out)
    refused(
        7, "convert", source, "-o", out, "--kv-heads", 1, *how[2:], says=("unfinished output of another run",)
    )
    refused(7, "convert", source, "-o", out, *how, "--merge", "mean", says=("--overwrite",))

    result = json.loads(succeeds(*command).out)
    assert result["resumed"] is (sharded or name == "copy_side_files")
    assert hashes(out) == hashes(Path("whole"))
    succeeds("verify", source, out)


def test_overwrite_starts_another_run_in_place_of_an_unfinished_one(
    model: Models, moments: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model("llama", kv_heads=4, sharded=True)
    how = ("--statistics", moments(source))
    interrupted(
        monkeypatch, writer.__name__, "write_shard", 3, "convert", source, "-o", "out", "--kv-heads", 2, *how
    )
    succeeds("convert", source, "-o", "out", "--kv-heads", 1, *how, "--overwrite")
    succeeds("convert", source, "-o", "whole", "--kv-heads", 1, *how)
    assert hashes(Path("out")) == hashes(Path("whole"))


def test_an_interrupted_calibration_leaves_nothing_and_the_moments_of_a_finished_one_are_used_again(
    model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model("llama", kv_heads=4)
    command = ("convert", source, "-o", "out", "--kv-heads", 2, *QUICK)
    interrupted(monkeypatch, "gqakit.calibration.calibrate", "collect_statistics", 0, *command)
    assert list(Path().iterdir()) == []
    interrupted(monkeypatch, "gqakit.conversion.convert", "convert_layer", 0, *command)
    kept = Path("out.statistics.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.delattr("gqakit.pipeline.calibrate_source")
        ran = succeeds(*command)
    assert "calibrate" not in ran.err
    assert Path("out.statistics.safetensors").read_bytes() == kept


@pytest.mark.parametrize("command", ["calibrate", "evaluate", "plan"])
def test_every_command_ends_with_130_when_interrupted(
    model: Models, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def stop(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gqakit.models.source.Source.open", stop)
    rest = {"calibrate": ("-o", "m.safetensors"), "plan": ("--kv-heads", 1)}.get(command, ())
    ran = gqakit(command, model("llama"), *rest)
    assert (ran.code, ran.out) == (130, "")
    assert "Traceback" not in ran.err
    assert list(Path().iterdir()) == []
