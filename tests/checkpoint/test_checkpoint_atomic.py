"""Files are whole or absent."""

import os

import pytest
from checkpoint_builders import files

from gqakit.checkpoint import atomic_file, write_bytes
from gqakit.errors import OutputError


def test_replaces_at_the_end(tmp_path):
    write_bytes(tmp_path / "f", b"old")
    with atomic_file(tmp_path / "f") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "f").read_bytes() == b"old"
    assert files(tmp_path) == {"f": b"new"}


def half_a_file(path, error):
    with atomic_file(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_an_error_keeps_the_old_file(tmp_path, error):
    write_bytes(tmp_path / "f", b"old")
    with pytest.raises(error):
        half_a_file(tmp_path / "f", error("inside"))
    assert files(tmp_path) == {"f": b"old"}


def test_errors_of_the_system_are_output_errors(tmp_path):
    with pytest.raises(OutputError, match=r"none/f: cannot be written .No such file"):
        write_bytes(tmp_path / "none" / "f", b"")
    (tmp_path / "dir").mkdir()
    with pytest.raises(OutputError, match="dir: cannot be written"):
        write_bytes(tmp_path / "dir", b"")
    assert files(tmp_path) == {}


def test_data_is_durable_before_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or rename(a, b))
    write_bytes(tmp_path / "f", b"x")
    assert calls == ["fsync", "replace", "fsync"]
