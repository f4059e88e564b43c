"""`--dataset` with a directory of JSON lines."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from command import SMALL, refused, succeeds
from tiny_fixtures import Models

pytest.importorskip("datasets")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a train and a test split, whose rows are paragraphs."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "corpus"
    folder.mkdir()
    text = files("gqakit").joinpath("data", "assets", "calibration.txt").read_text(encoding="utf-8")
    rows = [part for part in text.split("\n\n") if part.strip()]
    for split, chosen in (("train", rows[:60]), ("test", rows[60:120])):
        lines = [json.dumps({"text": row, "number": i}) for i, row in enumerate(chosen)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_calibrate_and_evaluate_on_a_dataset(model: Models, dataset: Path) -> None:
    ran = succeeds("calibrate", model(), "-o", "m.safetensors", "--dataset", dataset, *SMALL, "--json")
    head = json.loads(ran.out)
    assert head["text"] == f"{dataset}[train].text"
    assert head["tokens"] == 256
    rows = json.loads(succeeds("evaluate", model(), "--dataset", dataset, *SMALL, "--json").out)
    assert rows["checkpoints"][0]["scores"]["tokens"] == 248
    lines = (dataset / "test.jsonl").read_text(encoding="utf-8").splitlines()
    joined = "\n\n".join(json.loads(line)["text"] for line in lines)
    Path("joined.txt").write_text(joined, encoding="utf-8")
    same = json.loads(succeeds("evaluate", model(), "--text", "joined.txt", *SMALL, "--json").out)
    assert same["checkpoints"] == rows["checkpoints"]


def test_convert_with_a_dataset(model: Models, dataset: Path) -> None:
    how = ("--kv-heads", 2, "--method", "neighbour", "--dataset", dataset, "--dataset-split", "test", *SMALL)
    plan = json.loads(succeeds("convert", model(), "-o", "out", *how, "--json").out)["plan"]
    assert plan["moments"]["tokens"] == 256


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--dataset-column", "body"), ("no text column 'body'", "number", "text")),
        (("--dataset-column", "number"), ("no text column 'number'",)),
        (("--dataset-split", "dev"), ("'dev'",)),
    ],
)
def test_what_the_dataset_does_not_have(
    model: Models, dataset: Path, more: tuple[str, ...], says: tuple[str, ...]
) -> None:
    command = ("calibrate", model(), "-o", "m.safetensors", "--dataset", dataset, *SMALL)
    refused(9, *command, *more, says=says)


def test_a_dataset_that_is_not_there(model: Models) -> None:
    command = ("calibrate", model(), "-o", "m.safetensors", "--dataset", "./no/such/corpus", *SMALL)
    refused(9, *command, says=("no/such/corpus",))


def test_a_dataset_directory_without_data(model: Models) -> None:
    Path("empty").mkdir()
    refused(9, "calibrate", model(), "-o", "m.safetensors", "--dataset", "empty", *SMALL, says=("empty",))
