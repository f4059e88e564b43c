"""The fingerprint: every byte counts, sharding does not, and large files are hashed once."""

import json
import os
from pathlib import Path

import pytest
import torch
from checkpoint_builders import CONFIG, SHARDS, files, sharded, single, tensors, write_config
from safetensors.torch import save_file

from gqakit.checkpoint import Checkpoint, fingerprint


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache that also takes small and new files."""
    monkeypatch.setenv("GQAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_CACHED_BYTES", 0)
    monkeypatch.setattr(fingerprint, "_RACY_NS", 0)
    return tmp_path / "cache"


def test_ignores_sharding_and_volatile_keys(tmp_path):
    first = Checkpoint.open(single(tmp_path / "a")).fingerprint()
    moved = {**dict(reversed(CONFIG.items())), "_name_or_path": "there", "transformers_version": "9"}
    assert first.startswith("model-sha256:")
    assert len(first) == len("model-sha256:") + 64
    assert Checkpoint.open(single(tmp_path / "b", config=moved)).fingerprint() == first
    assert Checkpoint.open(sharded(tmp_path / "c")).fingerprint() == first


def test_tells_models_apart(tmp_path):
    first = Checkpoint.open(single(tmp_path / "a")).fingerprint()
    other_config = single(tmp_path / "b", config={**CONFIG, "torch_dtype": "bfloat16"})
    assert Checkpoint.open(other_config).fingerprint() != first
    assert Checkpoint.open(single(tmp_path / "c", seed=1)).fingerprint() != first
    other_dtype = {
        name: value.view(torch.int32) if name.endswith("scale") else value
        for name, value in tensors().items()
    }
    save_file(other_dtype, single(tmp_path / "d") / "model.safetensors")
    assert Checkpoint.open(tmp_path / "d").fingerprint() != first


def large(path, change=False):
    """A tensor far larger than the 4 KiB that were looked at once, with one value of its last row changed."""
    write_config(path)
    value = torch.arange(4096 * 8, dtype=torch.float32).view(4096, 8)
    value[-1, -1] += change
    save_file({"big": value}, path / "model.safetensors")
    return Checkpoint.open(path)


def test_sees_a_change_in_the_last_row_of_a_large_tensor(tmp_path):
    one, two = large(tmp_path / "a"), large(tmp_path / "b", change=True)
    assert one.fingerprint() != two.fingerprint()
    assert one.fingerprint("sha256:") == two.fingerprint("sha256:")  # why files of 0.1 cannot tell


@pytest.mark.parametrize("name", tensors())
def test_sees_any_changed_tensor(tmp_path, name):
    first = Checkpoint.open(single(tmp_path)).fingerprint()
    changed = tensors()
    changed[name].view(-1)[-1] += 1
    save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert Checkpoint.open(tmp_path).fingerprint() != first


def test_the_form_of_old_files_is_kept(tmp_path):
    opened = Checkpoint.open(single(tmp_path))
    old = opened.fingerprint("sha256:" + "0" * 64)
    assert old == "sha256:4f5aac5fde341b51831d70061a09be96bb5f855f9e69241000298d4ae9552f8a"
    assert opened.fingerprint(opened.fingerprint()) == opened.fingerprint("") != old


def hashed(monkeypatch):
    read = []
    monkeypatch.setattr(
        Checkpoint, "read_chunks", lambda self, info, chunk: read.append(info.name) or iter([b"x"])
    )
    return read


def test_a_cached_file_is_not_read_again(tmp_path, cache, monkeypatch):
    before = files(sharded(tmp_path / "m"))
    first = Checkpoint.open(tmp_path / "m").fingerprint()
    assert len(list((cache / "digests").iterdir())) == len(SHARDS)
    assert files(tmp_path / "m") == before
    read = hashed(monkeypatch)
    assert Checkpoint.open(tmp_path / "m").fingerprint() == first
    assert read == []


def test_a_changed_file_is_read_again_even_with_its_old_time(tmp_path, cache):
    opened = large(tmp_path / "m")
    first, file = opened.fingerprint(), tmp_path / "m" / "model.safetensors"
    stat = file.stat()
    with file.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\x01")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert Checkpoint.open(tmp_path / "m").fingerprint() != first


def test_a_file_that_was_just_written_is_not_cached(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(fingerprint, "_RACY_NS", 3600 * 10**9)
    large(tmp_path / "m").fingerprint()
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"file": 3, "tensors": {}}', None])
def test_a_cache_that_cannot_be_used_is_no_error(tmp_path, cache, damage):
    first = large(tmp_path / "m").fingerprint()
    for entry in (cache / "digests").iterdir():
        entry.unlink()
        entry.write_bytes(damage) if damage is not None else entry.mkdir()
    assert Checkpoint.open(tmp_path / "m").fingerprint() == first


def test_a_home_that_cannot_be_written_is_no_error(tmp_path, cache):
    cache.write_bytes(b"a file")
    assert large(tmp_path / "m").fingerprint() == large(tmp_path / "n").fingerprint()


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("GQAKIT_CACHE", "/a")
    assert fingerprint.cache_directory() == Path("/a")
    monkeypatch.delenv("GQAKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert fingerprint.cache_directory() == Path("/b/gqakit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert fingerprint.cache_directory() == Path("/c/.cache/gqakit")


def test_config_values_that_only_python_reads(tmp_path):
    """Mamba configs hold Infinity, which json.loads takes and transformers writes."""
    (single(tmp_path) / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert json.dumps(Checkpoint.open(tmp_path).config) == '{"time_step_limit": [0.0, Infinity]}'
    Checkpoint.open(tmp_path).fingerprint()
