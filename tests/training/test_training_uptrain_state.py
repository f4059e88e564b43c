"""The work directory: never half a state, nothing of another run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from gqakit.errors import OutputError
from gqakit.recovery.distil.state import Progress, Store
from gqakit.recovery.distil.tensorfile import load_tensors, save_tensors


def test_tensors_come_back(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4).T,
        "b": torch.tensor(2.0),
        "c": torch.randn(2, 2).bfloat16(),
        "d": torch.zeros(0, 3),
    }
    save_tensors(tmp_path / "x.safetensors", tensors)
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def saved(store: Store, step: int) -> Progress:
    progress = Progress(step=step).evaluated({"loss": 1.0 / (step + 1)})
    weights = {"w": torch.full((1000,), float(step))}
    store.save_best(step, weights)
    store.save_state(progress, weights, {"w|exp_avg": torch.ones(1000)})
    return progress


def test_only_the_last_state_and_the_best_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.begin({"seed": 0}, restart=False) == Progress()
    saved(store, 2)
    last = saved(store, 4)
    store.log({"step": 4})
    store.log({"step": 5})
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["best-00000004", "state-00000004"]
    assert Store(tmp_path).begin({"seed": 0}, restart=False) == last
    assert store.metrics() == b'{"step": 4}\n', "what comes after the state is done again"
    with pytest.raises(OutputError, match=r"seed was 0, is now 1.*--restart"):
        store.begin({"seed": 1}, restart=False)
    assert store.begin({"seed": 1}, restart=True) == Progress()
    assert store.found() is None


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.begin({}, restart=False)
    last = saved(store, 2)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left.*last good state is kept in .*state-00000002"):
        store.save_state(Progress(step=4), {"w": torch.ones(1000)}, {})
    monkeypatch.undo()
    assert store.found() == last
    assert not list(tmp_path.glob("*.partial"))
    assert torch.equal(store.load_state(2)[0]["w"], torch.full((1000,), 2.0))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin({}, restart=False)
    saved(store, 2)
    (tmp_path / "state-00000002" / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(OutputError, match=r"cannot be read.*--restart"):
        store.load_state(2)
    (tmp_path / "state-00000002" / "state.json").write_text("{")
    with pytest.raises(OutputError, match=r"cannot be read.*--restart"):
        store.begin({}, restart=False)
