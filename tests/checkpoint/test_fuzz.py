"""Damaged and hostile files: a few hundred of benchmarks/fuzz.py's inputs, and by name what they found once."""

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoint_builders import arguments, files, sharded, single

from fuzz import GOLDEN, TARGETS, fuzz
from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint import MANIFEST_NAME, Checkpoint, write_checkpoint
from gqakit.errors import CheckpointError, FamilyError, OutputError, PlanError
from gqakit.models.source import Source
from gqakit.planning.layer_loss.file import LossFile, LossHeader
from gqakit.planning.plan import Plan


def test_each_input_is_read_or_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, failures = fuzz(0, 500, tmp_path)
    assert not failures, "\n".join(failures)
    assert {name for name, _ in results} == set(TARGETS)
    outcomes = [outcome for _, outcome in results.elements()]
    assert min(outcomes.count("read"), outcomes.count("refused")) > 100  # neither is the rule


def test_the_fuzzer_sees_other_errors_and_files_outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fuzz.Checkpoint.open", lambda path: [][0])
        patch.setattr("fuzz.inspect", lambda *given: (tmp_path / "input" / "new").write_text(""))
        _, failures = fuzz(0, 20, tmp_path)
    assert any("IndexError" in failure for failure in failures)
    assert any("outside of the output: ['new']" in failure for failure in failures)


def changed(path, **changes):
    """A copy of the golden model with changes of its config.json."""
    copy = Path(shutil.copytree(GOLDEN / "model", path))
    config = json.loads((copy / "config.json").read_bytes())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return str(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2**23}, "num_hidden_layers = 8388608, but the checkpoint holds 21 tensors"),
        ({"head_dim": 2**63}, "head_dim = 9223372036854775808"),
        ({"partial_rotary_factor": "x", "rope_parameters": [1]}, "partial_rotary_factor is 'x'"),
        ({"partial_rotary_factor": float("inf"), "rope_parameters": None}, "partial_rotary_factor is inf"),
        ({"partial_rotary_factor": 0.25, "rope_parameters": None}, "llama rotates all channels of a head"),
    ],
)
def test_absurd_configs(tmp_path, changes, message):
    with pytest.raises(FamilyError, match=message):
        Source.open(changed(tmp_path / "m", **changes))


@pytest.mark.parametrize("stacks", [[], [3], "x", None])
def test_grouped_config_of_no_stacks(tmp_path, stacks):
    copy = Path(shutil.copytree(GOLDEN / "grouped", tmp_path / "m"))
    config = json.loads((copy / "config.json").read_bytes())
    config["gqakit"]["stacks"] = stacks
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(FamilyError, match="'gqakit' is missing or malformed"):
        Source.open(copy)


def open_losses(path):
    header = LossHeader.model_validate_json((GOLDEN / "losses.jsonl").read_text().splitlines()[0])
    return LossFile.open(header, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_can_be_read_for_ever_is_refused(tmp_path, kind):
    def instead(path):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
        return path

    model = sharded(tmp_path / "m")
    for name in ("config.json", "model.safetensors.index.json"):
        kept = (model / name).read_bytes()
        instead(model / name)
        with pytest.raises(CheckpointError, match="no regular file"):
            Checkpoint.open(model)
        (model / name).unlink()
        (model / name).write_bytes(kept)
    instead(single(tmp_path / "one") / "model.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        Checkpoint.open(tmp_path / "one")
    with pytest.raises(PlanError, match="no regular file"):
        Plan.load(instead(tmp_path / "plan.json"))
    with pytest.raises(PlanError, match="no regular file"):
        StatisticsFile.open(instead(tmp_path / "statistics"))
    with pytest.raises(OutputError, match="no regular file"):
        open_losses(instead(tmp_path / "losses"))


@pytest.mark.parametrize("name", ["../mine", "/mine", "sub/../../mine", "link/mine"])
def test_a_manifest_that_lists_files_elsewhere(tmp_path, name):
    """Nothing outside of the output is removed for it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (tmp_path / "mine").write_text("mine")
    out = Path(shutil.copytree(GOLDEN / "unfinished", tmp_path / "out"))
    (out / "link").symlink_to(outside)
    manifest = json.loads((out / MANIFEST_NAME).read_bytes())
    (out / MANIFEST_NAME).write_text(json.dumps({**manifest, "files": [name]}))
    source = Checkpoint.open(single(tmp_path / "in"))
    with pytest.raises(OutputError, match=r"not a manifest|another run"):
        write_checkpoint(source, out, **arguments(source))
    write_checkpoint(source, out, **arguments(source, overwrite=True))
    assert (outside / "mine").read_text() == (tmp_path / "mine").read_text() == "mine"
    assert files(out) == {**files(tmp_path / "in")}
