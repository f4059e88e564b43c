"""Moments on disk."""

from dataclasses import fields

import pytest
import torch
from safetensors.torch import save_file

from gqakit.calibration.store import StatisticsFile, StatisticsHeader, save_statistics
from gqakit.core.statistics import LayerStatistics
from gqakit.errors import PlanError
from gqakit.planning.planner import statistics_record

HEADER = StatisticsHeader(
    source="tiny",
    fingerprint="sha256:" + "ab" * 32,
    num_layers=2,
    width=6,
    tokens=96,
    tokens_asked=100,
    window=12,
    text="words",
    text_sha256="ff",
)


def layers() -> dict[int, LayerStatistics]:
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        0: LayerStatistics(normal(7, 7), normal(7, 7), normal(2, 12), normal(3)),
        1: LayerStatistics(normal(7, 7)),
    }


def test_round_trip_in_single_precision(tmp_path):
    saved = save_statistics(tmp_path / "m.safetensors", HEADER, layers())
    opened = StatisticsFile.open(tmp_path / "m.safetensors")
    assert opened == saved
    assert opened.header == HEADER
    for index, moments in layers().items():
        for field in fields(LayerStatistics):
            before, after = getattr(moments, field.name), getattr(opened.layer(index), field.name)
            assert (before is None) == (after is None)
            if before is not None:
                assert torch.equal(after, before.float())


def test_same_moments_same_bytes(tmp_path):
    one = save_statistics(tmp_path / "a", HEADER, layers())
    two = save_statistics(tmp_path / "b", HEADER, layers())
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.fingerprint == two.fingerprint
    changed = {**layers(), 1: LayerStatistics(torch.eye(7))}
    assert save_statistics(tmp_path / "c", HEADER, changed).fingerprint != one.fingerprint


def test_matches_only_the_same_calibration(tmp_path):
    moments = save_statistics(tmp_path / "m", HEADER, layers())
    same = {"fingerprint": HEADER.fingerprint, "text_sha256": "ff", "tokens": 100, "window": 12}
    assert moments.matches(**same)
    for change in ({"fingerprint": "x"}, {"text_sha256": "fe"}, {"tokens": 96}, {"window": 11}):
        assert not moments.matches(**{**same, **change})


def test_record_is_what_a_plan_notes(tmp_path):
    moments = save_statistics(tmp_path / "m", HEADER, layers())
    record = statistics_record(moments)
    assert (record.path, record.tokens, record.fingerprint) == (str(tmp_path / "m"), 96, moments.fingerprint)


def test_only_for_the_model_they_were_taken_on(tmp_path):
    moments = save_statistics(tmp_path / "m", HEADER, layers())
    moments.check_source(HEADER.fingerprint, "tiny")
    with pytest.raises(PlanError, match=r"were taken on tiny \(sha256:abab.*not on other \(sha256:0000"):
        moments.check_source("sha256:" + "00" * 32, "other")


def test_files_that_hold_no_moments(tmp_path):
    with pytest.raises(PlanError, match="cannot read statistics"):
        StatisticsFile.open(tmp_path / "nowhere")
    whole = save_statistics(tmp_path / "m", HEADER, layers()).path.read_bytes()
    for name, content in {"cut": whole[:-40], "head": whole[:30], "noise": b"x" * 100, "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PlanError, match=f"cannot read statistics .*{name}"):
            StatisticsFile.open(tmp_path / name)
    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(
        PlanError, match=r"holds no statistics of gqakit's; make them with `gqakit calibrate`"
    ):
        StatisticsFile.open(tmp_path / "other")


@pytest.mark.parametrize("header", ["{}", "no json", HEADER.model_dump_json()[:-1] + ',"colour":1}'])
def test_headers_of_another_version(tmp_path, header):
    save_file({"a": torch.zeros(2)}, tmp_path / "m", metadata={"gqakit_moments": header})
    with pytest.raises(PlanError, match="have a header that this gqakit does not read"):
        StatisticsFile.open(tmp_path / "m")
