"""What is written: byte identity where nothing changes, the safetensors library's own bytes where it does."""

import json

import pytest
import torch
from checkpoint_builders import SHARDS, arguments, constant, files, raw_safetensors, sharded, single, tensors
from checkpoint_builders import write_config as write_source_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gqakit.checkpoint import Checkpoint, Replacement, output_bytes, write_checkpoint
from gqakit.errors import OutputError

K0, V0, K1 = (f"model.layers.{part}_proj.weight" for part in ("0.k", "0.v", "1.k"))


def run(source, out, **changes):
    return write_checkpoint(source, out, **arguments(source, **changes))


@pytest.mark.parametrize("build", [single, sharded])
def test_copy_is_byte_identical(tmp_path, build):
    source = Checkpoint.open(build(tmp_path / "in"))
    result = run(source, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "in")
    assert result.nbytes == source.nbytes
    assert result.kept == ()


def test_changed_file_has_the_bytes_safetensors_writes(tmp_path):
    """Golden: header layout, padding and order are those of save_file for the same tensors."""
    source = Checkpoint.open(single(tmp_path / "in"))
    smaller = torch.randn(2, 8)
    run(source, tmp_path / "out", replaced={K0: constant(smaller)})
    save_file({**tensors(), K0: smaller}, tmp_path / "golden", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "golden").read_bytes()


def test_only_the_changed_shard_changes(tmp_path):
    source = Checkpoint.open(sharded(tmp_path / "in"))
    smaller = torch.randn(2, 8)
    result = run(source, tmp_path / "out", replaced={K1: constant(smaller)})
    before, after = files(tmp_path / "in"), files(tmp_path / "out")
    assert after[SHARDS[0]] == before[SHARDS[0]]
    with safe_open(tmp_path / "out" / SHARDS[1], "pt") as reread:
        assert reread.metadata() == {"format": "pt"}
        assert torch.equal(reread.get_tensor(K1), smaller)
    assert result.written == SHARDS
    index = json.loads(after["model.safetensors.index.json"])
    assert index["weight_map"] == source.index.weight_map
    assert index["metadata"]["total_size"] == result.nbytes == source.nbytes - 2 * 8 * 4


def test_order_of_the_tensors_is_kept(tmp_path):
    """Also an order that safetensors would not choose."""
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate("zab")
    }
    write_source_config(tmp_path / "in")
    raw_safetensors(tmp_path / "in" / "model.safetensors", header, bytes(range(12)))
    source = Checkpoint.open(tmp_path / "in")
    run(source, tmp_path / "out", replaced={"a": constant(torch.ones(3))})
    written = Checkpoint.open(tmp_path / "out")
    assert [info.name for info in written.shards[0].tensors] == ["z", "a", "b"]
    assert written.shards[0].metadata is None
    assert written.shards[0].header_bytes % 8 == 0
    assert torch.equal(written.load("b"), source.load("b"))


def test_wide_elements_stay_aligned(tmp_path):
    """A bfloat16 of odd length before a float32 would put it where older safetensors cannot load it."""
    source = Checkpoint.open(single(tmp_path / "in"))
    odd = constant(torch.ones(3).bfloat16(), dtype="BF16")
    run(source, tmp_path / "out", replaced={"model.embed.weight": odd})
    written = Checkpoint.open(tmp_path / "out")
    assert all(info.start % info.torch_dtype.itemsize == 0 for info in written.tensors.values())
    assert torch.equal(written.load(K1), tensors()[K1])
    assert written.load("model.embed.weight").dtype == torch.bfloat16


def test_additions_follow_their_tensor(tmp_path):
    source = Checkpoint.open(sharded(tmp_path / "in"))
    added = {
        "first": constant(torch.ones(2), dtype="F32", after=K1),
        "second": constant(torch.ones(3), dtype="F32", after=K1),
        "chained": constant(torch.ones(4), dtype="F32", after="first"),
    }
    result = run(source, tmp_path / "out", replaced=added)
    written = Checkpoint.open(tmp_path / "out")
    names = [info.name for info in written.shards[1].tensors]
    at = names.index(K1)
    assert names[at : at + 4] == [K1, "first", "chained", "second"]
    assert written.nbytes == result.nbytes == source.nbytes + 9 * 4
    assert list(written.index.weight_map) == sorted(written.index.weight_map)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (constant(torch.ones(2), dtype="F32"), "follow none of the source's"),
        (constant(torch.ones(2), dtype="F32", after="ghost"), "follow none of the source's"),
        (constant(torch.ones(2), after=K0), "has dtype None"),
        (constant(torch.ones(2), dtype="F8_E4M3", after=K0), "has dtype 'F8_E4M3'"),
        (Replacement((-1,), "F32", torch.empty, K0), r"shape \(-1,\)"),
    ],
)
def test_impossible_additions(tmp_path, item, message):
    source = Checkpoint.open(single(tmp_path / "in"))
    with pytest.raises(OutputError, match=message):
        run(source, tmp_path / "out", replaced={"new": item})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [torch.ones(3, 8), torch.ones(4, 8).half()])
def test_produced_tensor_must_be_as_planned(tmp_path, value):
    source = Checkpoint.open(single(tmp_path / "in"))
    wrong = Replacement((4, 8), None, lambda: value)
    with pytest.raises(
        OutputError, match=rf"'{K0}' was produced as .* planned was torch.float32 of shape \(4, 8\)"
    ):
        run(source, tmp_path / "out", replaced={K0: wrong})
    assert not list((tmp_path / "out").glob("*.safetensors*"))


@pytest.mark.parametrize("chunk", [8, 100, 2**20])
def test_any_strides_and_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("gqakit.checkpoint.streaming.CHUNK", chunk)
    source = Checkpoint.open(single(tmp_path / "in"))
    base = torch.randn(8, 12)
    values = {
        K0: base.t(),
        K1: base[::3, 1::2],
        V0: torch.empty(3, 0).bfloat16(),
        "model.embed.weight": torch.nn.Parameter(base),
        "model.layers.1.scale": torch.tensor(7.0),
    }
    run(source, tmp_path / "out", replaced={name: constant(value) for name, value in values.items()})
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in values.items())


def test_tensors_are_produced_once_and_in_file_order(tmp_path):
    source = Checkpoint.open(sharded(tmp_path / "in"))
    calls = []
    replaced = {
        name: Replacement(info.shape, None, lambda name=name: calls.append(name) or source.load(name))
        for name, info in sorted(source.tensors.items(), reverse=True)
    }
    run(source, tmp_path / "out", replaced=replaced)
    assert calls == [info.name for shard in source.shards for info in shard.tensors]
    assert files(tmp_path / "out") == files(tmp_path / "in")


def test_progress_adds_up_to_the_planned_size(tmp_path):
    source = Checkpoint.open(sharded(tmp_path / "in"))
    replaced = {K0: constant(torch.ones(1, 8))}
    seen = []
    run(source, tmp_path / "out", replaced=replaced, progress=seen.append)
    on_disk = sum((tmp_path / "out" / name).stat().st_size for name in SHARDS)
    assert sum(seen) == on_disk == output_bytes(source, replaced)


def test_config_and_extra_files(tmp_path):
    source = Checkpoint.open(single(tmp_path / "in"))
    (tmp_path / "in" / "generation_config.json").write_text("{}")
    extra = {"README.md": b"card", "generation_config.json": b"{ }", "gqakit/plan.json": b"{}"}
    result = run(source, tmp_path / "out", config={**source.config, "kv": 2}, extra_files=extra)
    after = files(tmp_path / "out")
    assert {name: after[name] for name in extra} == extra
    assert json.loads(after["config.json"])["kv"] == 2
    assert result.side_files == ("generation_config.json",)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "", ".", "a\\b", "config.json", "model.safetensors", "./config.json", "x.gqakit-partial"],
)
def test_extra_file_names_that_are_refused(tmp_path, name):
    source = Checkpoint.open(single(tmp_path / "in"))
    with pytest.raises(OutputError, match="extra file"):
        run(source, tmp_path / "out", extra_files={name: b""})


def test_values_that_are_not_json(tmp_path):
    source = Checkpoint.open(single(tmp_path / "in"))
    with pytest.raises(OutputError, match="config is not JSON"):
        run(source, tmp_path / "out", config={"dtype": torch.float32})
    with pytest.raises(OutputError, match="job record is not JSON"):
        run(source, tmp_path / "out", decides={"dtype": torch.float32})


def test_total_parameters_are_counted_again(tmp_path):
    path = sharded(tmp_path / "in")
    index = json.loads((path / "model.safetensors.index.json").read_bytes())
    index["metadata"] |= {"total_parameters": 1, "total_size": 1, "other": "kept"}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    source = Checkpoint.open(path)
    run(source, tmp_path / "out")
    count = sum(value.numel() for value in tensors().values())
    written = Checkpoint.open(tmp_path / "out")
    assert written.index.metadata == {"total_parameters": count, "total_size": source.nbytes, "other": "kept"}
