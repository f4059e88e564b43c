"""Damaged safetensors files: always a CheckpointError that says what was seen and expected."""

import tempfile
from pathlib import Path

import pytest
from checkpoint_builders import raw_safetensors, sharded, single, write_config
from hypothesis import given, settings
from hypothesis import strategies as st

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "not JSON": (b"{nope", "not valid JSON"),
    "not an object": ([1], "JSON list, expected an object"),
    "deep nesting": (b"[" * 200_000, "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "repeated tensor": (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    "metadata of numbers": ({"__metadata__": {"n": 1}}, "not an object of strings"),
    "entry is no object": ({"a": 3}, "expected dtype, shape and data_offsets"),
    "entry lacks shape": ({"a": {"dtype": "F32"}}, "expected dtype, shape and data_offsets"),
    "unknown dtype": ({"a": entry(dtype="Q4")}, "unknown dtype 'Q4', expected one of BOOL"),
    "dtype is no text": ({"a": entry(dtype=[])}, r"unknown dtype \[\]"),
    "negative size": ({"a": entry(shape=(-1,))}, r"corrupt shape \[-1\]"),
    "size is true": ({"a": entry(shape=(True,))}, r"corrupt shape \[True\]"),
    "offsets backwards": ({"a": entry(offsets=(4, 0))}, r"corrupt data_offsets \[4, 0\]"),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, "corrupt data_offsets"),
    "shape against offsets": ({"a": entry(shape=(3,))}, r"F32 of shape \[3\] takes 12 bytes.*span 4"),
    "gap": ({"a": entry(offsets=(4, 8))}, "'a' leaves a gap before it"),
    "overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, "'b' overlaps"),
    "half a surrogate": (b'{"\\ud800": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "not Unicode"),
    "no tensors": ({}, "trailing bytes"),
}


@pytest.mark.parametrize(("header", "message"), HEADERS.values(), ids=HEADERS)
def test_malformed_header(tmp_path, header, message):
    write_config(tmp_path)
    raw_safetensors(tmp_path / "model.safetensors", header, b"\0" * 4)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_no_tensors_at_all(tmp_path):
    write_config(tmp_path)
    raw_safetensors(tmp_path / "model.safetensors", {})
    with pytest.raises(CheckpointError, match="hold no tensors"):
        Checkpoint.open(tmp_path)


def test_sizes_in_the_message(tmp_path):
    file = single(tmp_path) / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(size - 5)
    with pytest.raises(CheckpointError, match=rf"truncated: it has {size - 5} bytes, .* {size}\."):
        Checkpoint.open(tmp_path)
    file.write_bytes(file.read_bytes() + b"\0" * 9)
    with pytest.raises(CheckpointError, match=rf"trailing bytes.*{size + 4} bytes, .* {size}\."):
        Checkpoint.open(tmp_path)


def test_header_longer_than_the_format_allows(tmp_path):
    write_config(tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(200_000_008)
    with pytest.raises(CheckpointError, match="claims 200000000 bytes"):
        Checkpoint.open(tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), build=st.sampled_from([single, sharded]))
def test_any_truncation_is_a_checkpoint_error(data, build):
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder))
        file = data.draw(st.sampled_from(sorted(path.glob("*.safetensors"))))
        whole = file.read_bytes()
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(CheckpointError):
            Checkpoint.open(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_read_or_a_checkpoint_error(data):
    with tempfile.TemporaryDirectory() as folder:
        path = sharded(Path(folder))
        file = data.draw(st.sampled_from(sorted(path.iterdir())))
        whole = bytearray(file.read_bytes())
        # Headers are what is parsed; changed tensor data cannot be told from other data.
        whole[data.draw(st.integers(0, min(len(whole), 300) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(whole)
        try:
            opened = Checkpoint.open(path)
        except CheckpointError:
            return
        assert opened.fingerprint()
