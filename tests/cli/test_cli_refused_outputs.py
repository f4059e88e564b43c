"""Outputs that cannot be used: refused before any work, and left as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import SMALL, refused
from tiny_fixtures import Models


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes before the calibration."""
    monkeypatch.delattr("gqakit.pipeline.calibrate_source")


def convert(source: Path, out: Path | str, *more: str, says: tuple[str, ...]) -> None:
    """`gqakit convert` refuses an output."""
    refused(7, "convert", source, "-o", out, "--kv-heads", 2, *SMALL, *more, says=says)


@pytest.mark.usefixtures("no_work")
class TestBeforeAnyWork:
    """What needs only a look at the output."""

    def test_not_empty(self, model: Models) -> None:
        Path("out").mkdir()
        (Path("out") / "thesis.tex").write_text("precious")
        convert(model(), "out", says=("is not empty", "thesis.tex", "--overwrite"))
        convert(model(), "out", "--overwrite", says=("is not a checkpoint", "thesis.tex"))

    def test_a_finished_checkpoint(self, model: Models, copy: Models) -> None:
        copy(name="out")
        convert(model(kv_heads=4), "out", says=("is not empty", "--overwrite"))

    @pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["", "overwrite"])
    def test_the_source_itself(self, copy: Models, more: tuple[str, ...]) -> None:
        convert(copy(), "model", *more, says=("is the source", "never written to"))
        convert(copy(name="other"), "./other/../other", *more, says=("is the source",))

    @pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["", "overwrite"])
    def test_inside_the_source(self, copy: Models, more: tuple[str, ...]) -> None:
        convert(copy(), "model/converted", *more, says=("lies inside the source",))

    def test_around_the_source(self, copy: Models) -> None:
        copy(name="model")
        convert(Path("model"), ".", "--overwrite", says=("contains the source",))

    def test_a_file(self, model: Models) -> None:
        Path("out").write_text("a file")
        convert(model(), "out", says=("is a file",))
        convert(model(), "out", "--overwrite", says=("is a file",))

    def test_below_a_file(self, model: Models) -> None:
        Path("file").write_text("a file")
        convert(model(), "file/out", says=("file",))


def test_moments_into_a_directory_that_is_not_there(model: Models) -> None:
    says = ("missing/m.safetensors", "directory that exists")
    refused(7, "calibrate", model(), "-o", "missing/m.safetensors", *SMALL, says=says)


def test_moments_onto_a_directory(model: Models) -> None:
    Path("there").mkdir()
    refused(7, "calibrate", model(), "-o", "there", *SMALL, says=("there",))


def test_a_plan_into_a_directory_that_is_not_there(model: Models) -> None:
    command = ("plan", model(), "--kv-heads", 2, "--method", "neighbour")
    refused(7, *command, "-o", "missing/plan.json", says=("missing/plan.json",))


def test_a_plan_onto_a_directory(model: Models) -> None:
    Path("there").mkdir()
    refused(7, "plan", model(), "--kv-heads", 2, "--method", "neighbour", "-o", "there", says=("there",))


def test_a_full_disk(model: Models, moments: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("gqakit.checkpoint.output.shutil.disk_usage", lambda path: Full)
    command = ("convert", model(), "-o", "out", "--kv-heads", 2, "--method", "neighbour")
    refused(7, *command, "--statistics", moments(model()), says=("the disk has",))
