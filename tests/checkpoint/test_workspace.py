"""One writer for each output, and work directories from which nothing of anybody's is removed."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpoint_builders import arguments, files, single

from gqakit.checkpoint import Checkpoint, claimed_directory, output_lock, write_checkpoint
from gqakit.checkpoint.workspace import MARKER, claim, claimed, clear_claimed, remove_claimed
from gqakit.errors import OutputError

HOLD = """
import sys, time
from pathlib import Path
from gqakit.checkpoint import output_lock
with output_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to `out`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    yield other
    other.kill()
    other.wait()
    other.stdout.close()


def test_an_output_in_use_is_refused_and_a_killed_run_leaves_no_lock(tmp_path, holder):
    source = Checkpoint.open(single(tmp_path / "in"))
    with pytest.raises(OutputError, match=rf"out: in use by another run \(process {holder.pid} on "):
        write_checkpoint(source, tmp_path / "out", **arguments(source))
    with output_lock(tmp_path / "other"):
        pass
    holder.kill()
    holder.wait()
    assert [path.name for path in tmp_path.glob(".*lock")] == [".out.gqakit-lock"]
    write_checkpoint(source, tmp_path / "out", **arguments(source))
    assert files(tmp_path / "out") == files(tmp_path / "in")
    assert not list(tmp_path.glob(".*lock"))


def test_the_lock_names_its_holder_and_goes(tmp_path):
    with output_lock(tmp_path / "a" / "out"):
        (lock,) = (tmp_path / "a").iterdir()
        assert f"process {os.getpid()} on " in lock.read_text()
        with output_lock(tmp_path / "a" / "out"):  # again, by the same thread
            assert lock.exists()
        assert lock.exists()
    assert not list(tmp_path.iterdir())  # the folder that was made for it included


def test_another_thread_is_another_run(tmp_path):
    def take():
        with output_lock(tmp_path / "out"):
            return True

    with ThreadPoolExecutor(1) as other:
        with output_lock(tmp_path / "out"), pytest.raises(OutputError, match="in use"):
            other.submit(take).result()
        assert other.submit(take).result()


def test_one_output_by_two_names_is_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with ThreadPoolExecutor(1) as other, output_lock(tmp_path / "link"), pytest.raises(OutputError):
        other.submit(lambda: output_lock(tmp_path / "out").__enter__()).result()


def test_errors_inside_pass_through(tmp_path):
    with pytest.raises(OSError, match="mine"), output_lock(tmp_path / "out"):
        raise OSError("mine")
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_beside_the_output(tmp_path, monkeypatch):
    """A mounted directory, say: the lock lies among temporary files."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "out"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with output_lock(tmp_path / "out"):
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert len(list((tmp_path / "out").iterdir())) == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_directory_is_claimed_and_removed(tmp_path):
    with claimed_directory(tmp_path / "out", ".work", ["state-*", "a.json"]) as work:
        assert work == tmp_path / "out.work"
        assert claimed(work) == {"state-*", "a.json"}
        (work / "state-1").mkdir()
        (work / "state-1" / "deep").write_text("")
        (work / "a.json.gqakit-partial").write_text("")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder", "link", "nested"])
def test_somebody_elses_is_never_touched(tmp_path, kind):
    mine = tmp_path / "out.work"
    if kind == "file":
        mine.write_text("mine")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        mine.symlink_to(tmp_path / "elsewhere")
    else:
        (mine / "sub").mkdir(parents=True)
        ((mine / "sub" if kind == "nested" else mine) / "a.json").write_text("mine")
    before = files(tmp_path)
    with (
        pytest.raises(OutputError, match=r"out\.work: is in the way.*not its own"),
        claimed_directory(tmp_path / "out", ".work", ["a.json"]),
    ):
        pass
    assert files(tmp_path) == before


@pytest.mark.parametrize("marker", ["", "{}", '{"gqakit_work": 2, "files": []}', '{"files": ["*"], "x": 1}'])
def test_a_mark_that_gqakit_did_not_write_claims_nothing(tmp_path, marker):
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / MARKER).write_text(marker)
    with pytest.raises(OutputError, match="in the way"):
        claim(tmp_path / "out.work", ["*"])


def test_files_that_others_put_there_stay(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "state-1").write_text("theirs")
    with claimed_directory(tmp_path / "out", ".work", ["state-*"]) as work:
        (work / "state-2").write_text("")
        (work / "notes.md").write_text("theirs")
        (work / "link").symlink_to(outside)
        (work / "state-link").symlink_to(outside)
    assert sorted(path.name for path in work.iterdir()) == ["link", "notes.md"]
    assert (outside / "state-1").read_text() == "theirs"
    with pytest.raises(OutputError, match="in the way"):  # and it is theirs from now on
        claim(work, ["state-*"])


@pytest.mark.parametrize("keep", [True, False])
def test_after_an_error(tmp_path, keep):
    def fail():
        with claimed_directory(tmp_path / "out", ".work", ["a"], keep=keep) as work:
            (work / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "out.work").exists() == keep
    if keep:
        with claimed_directory(tmp_path / "out", ".work", ["a"]) as work:
            assert (work / "a").read_text() == "half"


def test_what_a_killed_claim_leaves_is_claimed(tmp_path):
    work = tmp_path / "out.work"
    work.mkdir()
    (work / f"{MARKER}.gqakit-partial").write_text("half")
    claim(work, ["a"])
    claim(work, ["b"])
    assert claimed(work) == {"a", "b"}
    (work / "a").write_text("")
    clear_claimed(work)
    assert [path.name for path in work.iterdir()] == [MARKER]
    remove_claimed(work)
    assert not work.exists()


def test_a_checkpoint_in_a_claimed_directory_is_all_gqakits(tmp_path):
    source = Checkpoint.open(single(tmp_path / "in"))
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    extra = {"sub/[1].json": b"{}"}
    with claimed_directory(tmp_path / "out", ".unrepaired", ()) as work:
        write_checkpoint(source, work, **arguments(source, extra_files=extra))
        assert {*files(work)} > {MARKER, "sub/[1].json", "model.safetensors", "tokenizer.json"}
        write_checkpoint(source, work, **arguments(source, overwrite=True))
        assert "sub/[1].json" not in files(work)
        (work / "theirs").write_text("")
    assert [*files(Path(work))] == ["theirs"]


def test_a_claimed_checkpoint_that_was_half_removed_is_written_again(tmp_path):
    source = Checkpoint.open(single(tmp_path / "in"))
    claim(tmp_path / "work", ())
    write_checkpoint(source, tmp_path / "work", **arguments(source, extra_files={"a": b""}))
    (tmp_path / "work" / "config.json").unlink()
    write_checkpoint(source, tmp_path / "work", **arguments(source, overwrite=True))
    assert files(tmp_path / "work").keys() == {MARKER, "config.json", "model.safetensors"}
