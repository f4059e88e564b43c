"""Layers planned and converted by several processes: the same bytes, one clear error, nothing left behind."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_fixtures import Models

from gqakit import convert, plan
from gqakit.errors import CheckpointError, GqakitError
from gqakit.planning.plan import Plan
from gqakit.planning.workers import Workers


def test_any_number_of_workers_makes_the_same_bytes(model: Models, moments: Models) -> None:
    source = model(kv_heads=4)
    statistics = moments(source)

    def planned(workers: int, **how: str) -> Plan:
        own = {"statistics": statistics, "workers": workers, "progress": False}
        return plan(source, kv_ratio=0.5, kv_maps="separate", **how, **own)

    def converted(workers: int, decided: Plan) -> dict[str, bytes]:
        out = Path(f"out-{workers}")
        own = {"statistics": statistics, "workers": workers, "progress": False}
        convert(source, out, plan=decided, evaluate=False, **own)
        return {file.name: file.read_bytes() for file in sorted(out.iterdir())}

    # Weighed errors are looked at in two steps, an even split in one.
    for workers, how in ((2, {"layer_loss": "error"}), (3, {"allocation": "uniform", "format": "grouped"})):
        alone = planned(1, **how)
        assert planned(workers, **how).to_json() == alone.to_json()
    written = converted(1, alone)
    assert any(name.endswith(".safetensors") for name in written)
    assert converted(2, alone) == written


def test_what_a_worker_refuses_is_said_as_one_process_says_it(model: Models, tmp_path: Path) -> None:
    source = Path(model(kv_heads=4))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in source.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if "k_proj.weight" in name and ".1." in name)
    weights[name][0, 0] = torch.nan
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    said = []
    for workers in (1, 2):
        with pytest.raises(CheckpointError, match="NaN") as raised:
            plan(damaged, kv_ratio=0.5, layer_loss="error", workers=workers, progress=False)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert not multiprocessing.active_children()


def test_an_interruption_ends_the_workers_at_once() -> None:
    started = time.monotonic()

    def work() -> None:
        with Workers(2, time.sleep, (0,), "nothing") as pool:
            assert pool.result(pool.submit(os.getpid)) != os.getpid()
            for _ in range(4):
                pool.submit(time.sleep, 120)
            time.sleep(0.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - started < 100
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_an_error_that_says_so() -> None:
    with Workers(2, time.sleep, (0,), "a layer") as pool:
        gone = pool.submit(os._exit, 1)
        with pytest.raises(GqakitError, match=r"one of 2 worker processes died.*each holds a layer"):
            pool.result(gone)
    assert not multiprocessing.active_children()
