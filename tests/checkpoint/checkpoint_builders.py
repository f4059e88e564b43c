"""Small random checkpoints in Hugging Face layout, and ways to look at directories."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from gqakit.checkpoint import Checkpoint, Replacement, WriteJob

CONFIG = {"model_type": "llama", "hidden_size": 8, "torch_dtype": "float32", "_name_or_path": "here"}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "model.embed.weight": torch.randn(6, 8, generator=rng),
        "model.layers.0.k_proj.weight": torch.randn(4, 8, generator=rng),
        "model.layers.0.v_proj.weight": torch.randn(4, 8, generator=rng).bfloat16(),
        "model.layers.1.k_proj.weight": torch.randn(4, 8, generator=rng),
        "model.layers.1.scale": torch.tensor(2.0),
    }


def write_config(path: Path, config: Mapping = CONFIG) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=2))


def single(path: Path, seed: int = 0, config: Mapping = CONFIG) -> Path:
    write_config(path, config)
    save_file(tensors(seed), path / "model.safetensors", metadata={"format": "pt"})
    return path


def sharded(path: Path, seed: int = 0) -> Path:
    """Two shards: the first holds embed and layer 0, the second layer 1."""
    write_config(path)
    weight_map = {name: SHARDS["layers.1" in name] for name in sorted(tensors())}
    for shard in SHARDS:
        part = {name: value for name, value in tensors(seed).items() if weight_map[name] == shard}
        save_file(part, path / shard, metadata={"format": "pt"})
    total = sum(value.nbytes for value in tensors().values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return path


def edit_index(path: Path, change) -> None:
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_bytes())
    change(index)
    file.write_text(json.dumps(index))


def raw_safetensors(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def constant(value: torch.Tensor, **placing) -> Replacement:
    return Replacement(tuple(value.shape), placing.pop("dtype", None), lambda: value, **placing)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def arguments(source: Checkpoint, **changes) -> dict:
    """The arguments of `write_checkpoint` for a plain copy, with changes of them or of the job."""
    asked = {"replaced": {}, "config": source.config, "decides": {"kv_ratio": 0.5}, **changes}
    how = {name: asked.pop(name) for name in ("overwrite", "progress") if name in asked}
    return {"job": WriteJob(**asked), **how}
