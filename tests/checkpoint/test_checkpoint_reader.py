"""Opening and reading a checkpoint, and its fingerprint."""

import pytest
import torch
from checkpoint_builders import CONFIG, SHARDS, sharded, single, tensors, write_config
from safetensors.torch import save_file

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError


@pytest.mark.parametrize("build", [single, sharded])
def test_loads_what_safetensors_saved(tmp_path, build):
    opened = Checkpoint.open(build(tmp_path / "m"))
    expected = tensors()
    assert set(opened.tensors) == set(expected)
    for name, value in expected.items():
        loaded = opened.load(name)
        assert loaded.dtype == value.dtype
        assert opened.tensors[name].torch_dtype == value.dtype
        assert torch.equal(loaded, value)
    assert opened.nbytes == sum(value.nbytes for value in expected.values())


def test_every_dtype_and_empty_shapes(tmp_path):
    kinds = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    ]
    kinds += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.uint64]
    saved = {str(kind): torch.tensor([1, 0, 1]).to(kind) for kind in kinds}
    saved |= {"empty": torch.empty(0, 3), "wide": torch.empty(3, 0), "scalar": torch.tensor(3.0)}
    write_config(tmp_path)
    save_file(saved, tmp_path / "model.safetensors")
    opened = Checkpoint.open(tmp_path)
    for name, value in saved.items():
        loaded = opened.load(name)
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, value)


def test_describes_shards(tmp_path):
    opened = Checkpoint.open(sharded(tmp_path))
    assert tuple(shard.name for shard in opened.shards) == SHARDS
    assert opened.index.metadata == {"total_size": opened.nbytes}
    assert opened.config == CONFIG
    assert opened.config_bytes == (tmp_path / "config.json").read_bytes()
    for shard in opened.shards:
        assert shard.metadata == {"format": "pt"}
        assert shard.tensors[0].start == shard.header_bytes
        assert shard.tensors[-1].end == shard.size == (tmp_path / shard.name).stat().st_size


def test_chunks_are_bounded_and_complete(tmp_path):
    opened = Checkpoint.open(single(tmp_path))
    info = opened.tensors["model.embed.weight"]
    chunks = list(opened.read_chunks(info, chunk=50))
    assert [len(chunk) for chunk in chunks] == [50, 50, 50, 42]
    assert b"".join(chunks) == tensors()[info.name].numpy().tobytes()


def test_unknown_tensor_names_near_ones(tmp_path):
    opened = Checkpoint.open(single(tmp_path))
    with pytest.raises(CheckpointError, match=r"no tensor 'model.layers.0.k_proj'.*k_proj\.weight"):
        opened.load("model.layers.0.k_proj")


def test_file_cut_after_opening(tmp_path):
    opened = Checkpoint.open(single(tmp_path))
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(opened.shards[0].size - 1)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        opened.load(opened.shards[0].tensors[-1].name)


def test_single_file_wins_over_an_index(tmp_path):
    """As in transformers: an index beside a whole model.safetensors is not read."""
    sharded(tmp_path)
    single(tmp_path, seed=1)
    opened = Checkpoint.open(tmp_path)
    assert opened.index is None
    assert torch.equal(opened.load("model.embed.weight"), tensors(1)["model.embed.weight"])
