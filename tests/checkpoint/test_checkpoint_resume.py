"""Interruptions: what is left is visibly unfinished, and the same run continues to the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_builders import SHARDS, arguments, files, sharded

from gqakit.checkpoint import MANIFEST_NAME, Checkpoint, Replacement, write_checkpoint
from gqakit.checkpoint.atomic import PARTIAL
from gqakit.errors import CheckpointError, OutputError


class Run:
    """A conversion that doubles every tensor, lists what it produced, and can be interrupted at one."""

    def __init__(self, source, out):
        self.source, self.out, self.produced = source, out, []

    def __call__(self, interrupt_at=None, **changes):
        self.produced.clear()

        def produce(name):
            if name == interrupt_at:
                raise KeyboardInterrupt
            self.produced.append(name)
            return self.source.load(name) * 2

        replaced = {
            name: Replacement(info.shape, None, lambda name=name: produce(name))
            for name, info in self.source.tensors.items()
        }
        options = {"replaced": replaced, "extra_files": {"plan.json": b"{}"}, **changes}
        return write_checkpoint(self.source, self.out, **arguments(self.source, **options))


@pytest.fixture
def source(tmp_path):
    (sharded(tmp_path / "in") / "tokenizer.json").write_text("{}")
    return Checkpoint.open(tmp_path / "in")


@pytest.fixture
def whole(source, tmp_path):
    Run(source, tmp_path / "whole")()
    return files(tmp_path / "whole")


@pytest.fixture
def interrupted(source, tmp_path):
    """Stopped within the second shard."""
    run = Run(source, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(interrupt_at=source.shards[1].tensors[-1].name)
    return run


def test_what_an_interruption_leaves(interrupted):
    assert set(files(interrupted.out)) == {MANIFEST_NAME, SHARDS[0]}
    with pytest.raises(CheckpointError, match="unfinished gqakit output"):
        Checkpoint.open(interrupted.out)
    manifest = json.loads((interrupted.out / MANIFEST_NAME).read_bytes())
    assert list(manifest["finished"]) == [SHARDS[0]]
    assert manifest["job"] == {"kv_ratio": 0.5}


@pytest.mark.parametrize("overwrite", [False, True])
def test_continues_to_the_same_bytes(interrupted, source, whole, overwrite):
    seen = []
    result = interrupted(overwrite=overwrite, progress=seen.append)
    assert files(interrupted.out) == whole
    assert (result.kept, result.written) == (SHARDS[:1], SHARDS[1:])
    assert interrupted.produced == [info.name for info in source.shards[1].tensors]
    assert sum(seen) == sum(len(whole[name]) for name in SHARDS)


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
def test_a_damaged_shard_is_redone(interrupted, whole, damage):
    shard = interrupted.out / SHARDS[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(data if damage == "changed" else data[:-1])
    result = interrupted()
    assert result.kept == ()
    assert files(interrupted.out) == whole


@pytest.mark.parametrize("suffix", [PARTIAL, ".partial"])  # the second is that of gqakit 0.1
def test_leftovers_of_a_killed_run_go(interrupted, whole, suffix):
    for name in (SHARDS[1], MANIFEST_NAME, "config.json"):
        (interrupted.out / f"{name}{suffix}").write_bytes(b"half")
    interrupted()
    assert files(interrupted.out) == whole


def test_stopped_between_config_and_manifest(source, tmp_path, whole, monkeypatch):
    run = Run(source, tmp_path / "out")

    unlink = Path.unlink

    def stop(path, **how):
        if path.name == MANIFEST_NAME:
            raise KeyboardInterrupt
        unlink(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (run.out / "config.json").exists()
    with pytest.raises(CheckpointError, match="unfinished"):
        Checkpoint.open(run.out)
    assert run().kept == SHARDS
    assert run.produced == []
    assert files(run.out) == whole


def test_another_job_is_refused(interrupted):
    before = files(interrupted.out)
    with pytest.raises(OutputError, match=r"another run \(kv_ratio was 0.5, is now 0.25\).*--overwrite"):
        interrupted(decides={"kv_ratio": 0.25})
    assert files(interrupted.out) == before


def test_another_source_is_refused(interrupted, tmp_path):
    other = Run(Checkpoint.open(sharded(tmp_path / "other", seed=1)), interrupted.out)
    with pytest.raises(OutputError, match="the source model differs"):
        other()


def test_another_job_with_overwrite_starts_again(interrupted, whole):
    result = interrupted(decides={"kv_ratio": 0.25}, overwrite=True)
    assert result.written == SHARDS
    assert files(interrupted.out) == whole


def test_unreadable_manifest(interrupted, whole):
    (interrupted.out / MANIFEST_NAME).write_text('{"finished": 3}')
    with pytest.raises(OutputError, match=r"not a manifest .*--overwrite"):
        interrupted()
    interrupted(overwrite=True)
    assert files(interrupted.out) == whole


def test_error_of_the_producer_passes_through(source, tmp_path, whole):
    run = Run(source, tmp_path / "out")
    error = RuntimeError("of the producer")

    def fail():
        raise error

    name = source.shards[1].tensors[0].name
    broken = {name: Replacement(source.tensors[name].shape, None, fail)}
    with pytest.raises(RuntimeError, match="of the producer"):
        run(replaced=broken)
    assert not (run.out / "config.json").exists()
    assert not list(run.out.glob("*partial"))


def test_full_disk_is_an_output_error(source, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        Run(source, tmp_path / "out")()
    assert files(tmp_path / "out") == {}


def test_same_job_spelled_differently(interrupted, whole):
    """A tuple and a list are the same JSON."""
    interrupted.out = interrupted.out.parent / "tuple"
    with pytest.raises(KeyboardInterrupt):
        interrupted(interrupt_at="model.layers.1.scale", decides={"layers": (0, 1), "a": 1})
    assert interrupted(decides={"a": 1, "layers": [0, 1]}).kept == SHARDS[:1]
    assert torch.equal(Checkpoint.open(interrupted.out).load("model.layers.1.scale"), torch.tensor(4.0))
