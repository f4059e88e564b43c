"""Calibration block by block gives the statistics of the whole model's forward passes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from family_models import build_family, inputs_of
from tiny_models import build

import gqakit
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.in_sequence import collect_in_sequence
from gqakit.calibration.store import StatisticsFile
from gqakit.core.statistics import LayerStatistics
from gqakit.errors import DataError, UsageError
from gqakit.models.blockwise.blocks import Blocks
from gqakit.models.load import use_attention_interface
from gqakit.models.source import Source

TEXT = {"tokens": 400, "window": 64}


def same(ours: LayerStatistics, theirs: LayerStatistics, tolerance: float = 1e-4) -> None:
    for field in fields(LayerStatistics):
        mine, its = getattr(ours, field.name), getattr(theirs, field.name)
        assert (mine is None) == (its is None), field.name
        if mine is not None:
            error = (mine.double() - its.double()).norm() / its.double().norm().clamp_min(1e-300)
            assert error < tolerance, (field.name, error)


@pytest.mark.parametrize(
    "variant",
    [
        *("llama", "qwen3", "gemma3_text", "olmo2", "mixtral", "smollm3", "gptj", "gpt_neox", "falcon_alibi"),
        *("whisper", "t5", "bert", "mpnet", "vit", "dinov2_with_registers"),
    ],
)
def test_the_same_statistics_block_by_block(tmp_path: Path, variant: str) -> None:
    source = Source.open(build_family(tmp_path / "m", variant)).with_all_stacks()
    batches: list[dict[str, Any]] = [
        {name: value[i : i + 1] for name, value in inputs_of(variant).items()} for i in range(2)
    ]
    whole = gqakit.load(source.path, dtype=torch.float32)
    use_attention_interface(whole, source.spec)
    expected = collect_statistics(whole, source.spec, batches)
    found: dict[int, LayerStatistics] = {}
    collect_in_sequence(Blocks(source.checkpoint, source.spec), dict(enumerate(batches)), found.__setitem__)
    assert found.keys() == expected.keys()
    for layer, moments in expected.items():
        same(found[layer], moments)
    for layer in list(found)[1:]:  # layers are told apart
        with pytest.raises(AssertionError):
            same(found[layer], expected[layer - 1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sequence") / "model")


@pytest.fixture(scope="module")
def whole(model: Path) -> StatisticsFile:
    return gqakit.calibrate(model, model.with_name("whole.safetensors"), progress=False, **TEXT)


def same_files(ours: StatisticsFile, theirs: StatisticsFile) -> None:
    assert ours.header == theirs.header
    for layer in range(ours.header.num_layers):
        same(ours.layer(layer), theirs.layer(layer))


def least_memory(model: Path) -> str:
    """What the refusal of too little memory says is enough."""
    said = r"max_memory=100.0 KiB.* is too small for one block .*give at least"
    with pytest.raises(UsageError, match=said) as raised:
        gqakit.calibrate(model, model.with_name("s.safetensors"), progress=False, max_memory="100KiB", **TEXT)
    return str(raised.value).partition("give at least ")[2].partition(",")[0]


def test_hidden_states_in_files(model: Path, whole: StatisticsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    from gqakit.models.blockwise import states

    written: list[int] = []
    put = states.States.put
    monkeypatch.setattr(
        states.States, "put", lambda self, key, t: (put(self, key, t), written.append(key not in self._kept))
    )
    before = sorted(model.parent.iterdir())
    found = gqakit.calibrate(
        model,
        model.with_name("files.safetensors"),
        progress=False,
        blockwise="always",
        max_memory=least_memory(model),
        **TEXT,
    )
    assert sum(written) > 5  # and not all in memory
    same_files(found, whole)
    assert [path.name for path in sorted(model.parent.iterdir()) if path not in before] == [
        "files.safetensors"
    ]


def launch(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A script in two processes, as torchrun starts them; `printed` reads what each of them wrote."""
    (cwd / "launched.py").write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(gqakit.__file__).parents[1])}
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("--log-dir", "logs", "--redirects", "1", "launched.py", *map(str, arguments)),
        ],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def printed(cwd: Path) -> list[str]:
    """What each process of the launch in `cwd` printed, apart: on one stream their lines may interleave."""
    return [path.read_text() for path in sorted((cwd / "logs").glob("*/attempt_0/*/stdout.log"))]


CALIBRATE = """
import os, sys
import gqakit
from gqakit.errors import GqakitError

for blockwise in ("never", "always"):
    for name, tokens in (("same", 400), ("other", 300 + 100 * int(os.environ["RANK"]))):
        try:
            gqakit.calibrate(sys.argv[1], f"{name}-{blockwise}.safetensors", blockwise=blockwise, progress=False,
                             window=64, tokens=tokens)
        except GqakitError as error:
            print("refused:", error)
"""


def test_two_processes_give_what_one_gives_or_refuse_together(
    model: Path, whole: StatisticsFile, tmp_path: Path
) -> None:
    ran = launch(CALIBRATE, model, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for blockwise in ("never", "always"):
        same_files(StatisticsFile.open(tmp_path / f"same-{blockwise}.safetensors"), whole)
    refusals = [
        text.count("refused: the processes of this launch disagree: tokens") for text in printed(tmp_path)
    ]
    assert refusals == [2, 2], ran.stderr
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "same-always.safetensors",
        "same-never.safetensors",
    ]


def test_what_is_not_finite_is_named(model: Path, tmp_path: Path) -> None:
    import shutil

    from tiny_models import edit_tensors

    bad = tmp_path / "bad"
    shutil.copytree(model, bad)
    edit_tensors(bad, lambda t: t["model.layers.2.mlp.up_proj.weight"].fill_(float("nan")))
    with pytest.raises(DataError, match="layer 3"):
        gqakit.calibrate(bad, tmp_path / "s.safetensors", progress=False, blockwise="always", **TEXT)
    assert not (tmp_path / "s.safetensors").exists()
