"""Which output directories are taken, and what overwriting removes."""

from collections import namedtuple

import pytest
from checkpoint_builders import arguments, files, sharded, single

from gqakit.checkpoint import Checkpoint, check_output, write_checkpoint
from gqakit.errors import OutputError


@pytest.fixture
def source(tmp_path):
    return Checkpoint.open(single(tmp_path / "in" / "model"))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("out", "relation"),
    [
        ("in/model", "is"),
        ("in/model/sub/dir", "lies inside"),
        ("in", "contains"),
        ("link", "is"),
        (".", "contains"),
    ],
)
def test_never_the_source(tmp_path, source, out, relation, overwrite):
    (tmp_path / "link").symlink_to(tmp_path / "in" / "model")
    before = files(tmp_path / "in")
    with pytest.raises(OutputError, match=f" {relation} the source"):
        check_output(source, tmp_path / out, overwrite)
    with pytest.raises(OutputError, match=f" {relation} the source"):
        write_checkpoint(source, tmp_path / out, **arguments(source, overwrite=overwrite))
    assert files(tmp_path / "in") == before


def test_source_given_by_a_link(tmp_path, source):
    (tmp_path / "link").symlink_to(tmp_path / "in" / "model")
    with pytest.raises(OutputError, match="lies inside"):
        check_output(Checkpoint.open(tmp_path / "link"), tmp_path / "in" / "model" / "out")


def test_a_similar_name_is_no_relation(tmp_path, source):
    check_output(source, tmp_path / "in" / "model-gqa")


def test_free_names_and_empty_directories(tmp_path, source):
    (tmp_path / "empty").mkdir()
    assert check_output(source, tmp_path / "empty") is None
    assert check_output(source, tmp_path / "a" / "b") is None
    assert not (tmp_path / "a").exists()


def test_a_file(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_output(source, tmp_path / "file", overwrite=True)


def test_not_empty(tmp_path, source):
    sharded(tmp_path / "out")
    with pytest.raises(OutputError, match=r"not empty \(holds config.json.*--overwrite"):
        check_output(source, tmp_path / "out")


def test_a_directory_of_something_else_is_never_cleared(tmp_path, source):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="is not a checkpoint"):
        write_checkpoint(source, tmp_path / "home", **arguments(source, overwrite=True))
    assert files(tmp_path / "home") == {"README.md": b"mine"}


def test_overwrite_removes_the_old_checkpoint_and_nothing_else(tmp_path, source):
    old = sharded(tmp_path / "out")
    (old / "tokenizer.model").write_text("old")
    (old / "additional_chat_templates").mkdir()
    (old / "additional_chat_templates" / "rag.jinja").write_text("old")
    mine = {"notes.md": "a", "train.py": "b", "runs/model.safetensors": "c", ".git/config.json": "d"}
    for name, text in mine.items():
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text(text)
    write_checkpoint(source, old, **arguments(source, overwrite=True))
    expected = files(source.path) | {name: text.encode() for name, text in mine.items()}
    assert files(old) == expected


def test_overwriting_a_link_leaves_its_target(tmp_path, source):
    target = tmp_path / "blob"
    target.write_bytes(b"shared")
    out = single(tmp_path / "out", seed=1)
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(target)
    write_checkpoint(source, out, **arguments(source, overwrite=True))
    assert target.read_bytes() == b"shared"
    assert files(out) == files(source.path)


def test_full_disk_is_told_before_anything_is_removed(tmp_path, source, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(0, 0, 5))
    with pytest.raises(OutputError, match=r"takes 0.00 GiB \(1000 bytes\), the disk has .* \(5 bytes\) free"):
        check_output(source, tmp_path / "new" / "out", needed_bytes=1000)
    out = sharded(tmp_path / "out")
    before = files(out)
    held = sum(len(data) for data in before.values())
    check_output(source, out, overwrite=True, needed_bytes=held + 5)
    with pytest.raises(OutputError, match="the disk has"):
        check_output(source, out, overwrite=True, needed_bytes=held + 6)
    with pytest.raises(OutputError, match="the disk has"):
        write_checkpoint(source, tmp_path / "fresh", **arguments(source))
    assert files(out) == before
    assert not (tmp_path / "fresh").exists()


def test_parent_that_is_a_file(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_checkpoint(source, tmp_path / "file" / "out", **arguments(source))
