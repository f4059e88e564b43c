"""The file of measured losses: nothing is measured twice, nothing is mixed up."""

from pathlib import Path

import pytest

from gqakit.errors import PlanError
from gqakit.planning.layer_loss.file import LossFile, LossHeader

HEADER = LossHeader(source="a", moments="b", merge="fold", text_sha256="c", windows=3, window=512)
KEY = (3, "both", (0, 0, 1))


def test_what_was_added_is_known_again(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    LossFile.open(HEADER, path).add(KEY, 0.25)
    again = LossFile.open(HEADER, path)
    assert again.known == {KEY: 0.25}
    again.add((4, "key", (0, 1, 1)), 0.5)
    assert len(LossFile.open(HEADER, path).known) == 2


def test_a_line_cut_short_is_dropped_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    LossFile.open(HEADER, path).add(KEY, 0.25)
    with path.open("a") as file:
        file.write('{"layer": 5, "side": "bo')
    again = LossFile.open(HEADER, path)
    assert again.known == {KEY: 0.25}
    again.add((5, "both", (0, 0, 0)), 1.0)
    assert LossFile.open(HEADER, path).known == {KEY: 0.25, (5, "both", (0, 0, 0)): 1.0}


def test_losses_of_something_else_are_refused_or_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    LossFile.open(HEADER, path).add(KEY, 0.25)
    other = HEADER.model_copy(update={"moments": "x", "window": 256})
    with pytest.raises(PlanError, match=r"another moments, window; delete the file or give another `losses`"):
        LossFile.open(other, path)
    assert LossFile.open(other, path, replace=True).known == {}
    assert LossFile.open(other, path).known == {}


@pytest.mark.parametrize("text", ["no losses\n", "\n", '{"gqakit_losses": 1}\n'])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    for replace in (False, True):
        with pytest.raises(PlanError, match="holds no losses that this gqakit wrote"):
            LossFile.open(HEADER, path, replace=replace)
    assert path.read_text() == text


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    LossFile.open(HEADER, path).add(KEY, 0.25)
    path.write_text(path.read_text().replace('"both"', '"neither"'))
    with pytest.raises(PlanError, match="line 2 is not a loss"):
        LossFile.open(HEADER, path)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    with pytest.raises(PlanError, match=r"layer 3: converting keys and values to groups \[0, 0, 1\]"):
        LossFile.open(HEADER, None).add(KEY, loss)
