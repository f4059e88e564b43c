"""Files that gqakit 0.1 wrote, kept in tests/golden: what is on people's disks stays readable.

All were made from `golden/model`, two shards of a random Llama with two layers of four heads.
"""

import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_builders import files

import gqakit
from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint import MANIFEST_NAME, Checkpoint
from gqakit.conversion.convert import convert_checkpoint
from gqakit.conversion.verify import verify
from gqakit.models.source import Source
from gqakit.planning.layer_loss.file import LossFile, LossHeader, measured_on
from gqakit.planning.plan import Plan

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "model"


@pytest.fixture
def plan():
    return Plan.load(GOLDEN / "plan.json")


def test_plan(plan):
    assert plan.to_json() == (GOLDEN / "plan.json").read_text()
    assert [layer.key for layer in plan.layers] == [(0, 1, 0, 2), (0, 0, 0, 0)]
    plan.check_source(Checkpoint.open(MODEL).fingerprint(plan.source.fingerprint), "golden")


def test_statistics(plan):
    found = StatisticsFile.open(GOLDEN / "statistics.safetensors")
    assert plan.moments is not None
    assert found.fingerprint == plan.moments.fingerprint
    found.check_source(Checkpoint.open(MODEL).fingerprint(found.header.fingerprint), "golden")
    layer = found.layer(0)
    assert layer.input.shape == (17, 17)
    assert layer.value is not None
    assert layer.value.shape == (17, 17)


def test_losses(tmp_path):
    path = Path(shutil.copy(GOLDEN / "losses.jsonl", tmp_path))
    first, *rest = path.read_text().splitlines()
    header = LossHeader.model_validate_json(first)
    assert measured_on(path) == header.source == Checkpoint.open(MODEL).fingerprint(header.source)
    opened = LossFile.open(header, path)
    assert len(opened.known) == len(rest) == 6
    assert opened.known[1, "both", (0, 1, 0, 2)] == 0.002913688035960149
    assert files(tmp_path)["losses.jsonl"] == (GOLDEN / "losses.jsonl").read_bytes()


def test_an_unfinished_output_is_continued(tmp_path, plan):
    out = Path(shutil.copytree(GOLDEN / "unfinished", tmp_path / "out"))
    kept = [path.name for path in out.glob("*.safetensors")]
    source = Source.open(MODEL, plan.source.stacks)
    statistics = StatisticsFile.open(GOLDEN / "statistics.safetensors")
    result = convert_checkpoint(source, plan, statistics, out, "card")
    assert list(result.kept) == kept == ["model-00001-of-00002.safetensors"]
    assert not (out / MANIFEST_NAME).exists()
    whole = files(GOLDEN / "grouped")
    assert {name: data for name, data in files(out).items() if name in whole and name != "config.json"} == {
        name: data for name, data in whole.items() if name != "config.json"
    }


def test_grouped_checkpoint():
    model = gqakit.load(GOLDEN / "grouped")
    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits
    assert logits.shape == (1, 8, 128)
    assert verify(str(MODEL), str(GOLDEN / "grouped")).passed
