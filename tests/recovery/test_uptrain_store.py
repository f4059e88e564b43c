"""The work directory: one run at a time, never half a state, nothing of another run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from gqakit.errors import OutputError
from gqakit.recovery.distil.store import Progress, RunStore


def saved(store: RunStore, step: int, best: int | None = None, last: int | None = None) -> None:
    """What the Trainer leaves of a step; it is the best unless another is."""
    folder = store.directory / f"checkpoint-{step}"
    with store.saving(step):
        folder.mkdir()
        save_file({"w": torch.full((1000,), float(step))}, folder / "model.safetensors")
        best = step if best is None else best
        lines = [{"eval_loss": 1.0 / (at + 1), "step": at} for at in range(last or step + 1)]
        state = TrainerState(
            global_step=step, best_global_step=best, best_metric=1 / (best + 1), log_history=lines
        )
        state.save_to_json(str(folder / "trainer_state.json"))
        store.finish(step, best)


def kept(store: RunStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir() if path.is_dir())


def test_only_the_last_state_and_the_best_stay(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    assert store.begin({"seed": 0}, restart=False) == Progress()
    saved(store, 2)
    saved(store, 4, best=2)
    assert kept(store) == ["checkpoint-2", "checkpoint-4"]
    saved(store, 12)
    assert kept(store) == ["checkpoint-12"]
    found = RunStore(tmp_path / "run").begin({"seed": 0}, restart=False)
    assert (found.step, found.best_step, found.best) == (12, 12, 1 / 13)
    assert found.first == {"loss": 1.0}
    assert found.last == found.best_scores == {"loss": 1 / 13}
    with pytest.raises(OutputError, match=r"seed was 0, is now 1.*`restart=True`"):
        store.begin({"seed": 1}, restart=False)
    assert store.begin({"seed": 1}, restart=True) == Progress()
    assert kept(store) == []


def test_a_half_written_state_is_never_continued(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.begin({}, restart=False)
    saved(store, 2)
    saved(store, 4, best=2)
    (tmp_path / "checkpoint-4" / "whole").unlink()
    assert store.begin({}, restart=False).step == 2
    assert kept(store) == ["checkpoint-2"]


def test_killed_as_it_begins_again_a_run_leaves_no_attempt_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / "run")
    store.begin({"seed": 0}, restart=False)
    saved(store, 2)

    def killed(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gqakit.recovery.distil.store.write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            store.begin_again(1)
    assert (kept(store), store.attempt()) == ([], 0)
    assert store.begin({"seed": 0}, restart=False) == Progress()
    store.begin_again(1)
    assert (kept(store), store.attempt()) == ([], 1)


def test_patience_is_counted_from_the_best(tmp_path: Path) -> None:
    store = RunStore(tmp_path, patience=2)
    store.begin({}, restart=False)
    saved(store, 2, best=1)
    assert not store.progress().stopped
    saved(store, 3, best=1)
    assert store.progress().stopped


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path)
    store.begin({}, restart=False)
    saved(store, 2)
    last = store.progress()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left.*last good state is kept in .*checkpoint-2"):
        saved(store, 4)
    monkeypatch.undo()
    assert store.progress() == last
    assert kept(store) == ["checkpoint-2"]
    assert torch.equal(store.weights(2)["w"], torch.full((1000,), 2.0))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.begin({}, restart=False)
    saved(store, 2)
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(OutputError, match=r"cannot be read.*`restart=True`"):
        store.weights(2)
    for content in ("{", '{"step": 1}'):
        (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(content)
        with pytest.raises(OutputError, match=r"cannot be read.*`restart=True`"):
            store.begin({}, restart=False)
