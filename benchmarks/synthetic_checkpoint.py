"""Write a random Llama checkpoint of about 2 GB, in four shards, and random statistics for it.

python benchmarks/synthetic_checkpoint.py DIRECTORY
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from convert_speed import CONFIG
from gqakit.calibration.store import StatisticsHeader, save_statistics
from gqakit.core.statistics import LayerStatistics
from gqakit.models.source import Source

SHARDS = 4


def main() -> None:
    """Write the checkpoint and `synthetic-statistics.safetensors` beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    hidden, inner, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    layers = CONFIG["num_hidden_layers"]

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(SHARDS):
        tensors: dict[str, torch.Tensor] = {}
        for layer in range(layers * shard // SHARDS, layers * (shard + 1) // SHARDS):
            at = f"model.layers.{layer}"
            tensors[f"{at}.input_layernorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
            tensors[f"{at}.post_attention_layernorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
            for name, shape in (
                ("q", (hidden, hidden)),
                ("k", (kv, hidden)),
                ("v", (kv, hidden)),
                ("o", (hidden, hidden)),
            ):
                tensors[f"{at}.self_attn.{name}_proj.weight"] = random(*shape)
            tensors[f"{at}.mlp.gate_proj.weight"] = random(inner, hidden)
            tensors[f"{at}.mlp.up_proj.weight"] = random(inner, hidden)
            tensors[f"{at}.mlp.down_proj.weight"] = random(hidden, inner)
        if shard == 0:
            tensors["model.embed_tokens.weight"] = random(vocab, hidden)
            tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        if shard == SHARDS - 1:
            tensors["lm_head.weight"] = random(vocab, hidden)
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    _write_statistics(directory, generator)


def _write_statistics(directory: Path, generator: torch.Generator) -> None:
    source = Source.open(directory)
    spec = source.spec

    def moment() -> torch.Tensor:
        rows = torch.randn(4096, spec.hidden_size + 1, generator=generator)
        rows[:, -1] = 1
        return rows.T @ rows / len(rows)

    window = 512
    distances = torch.rand(spec.key_heads[0], window, generator=generator)
    frequencies = 10000.0 ** (-torch.arange(0, spec.head_dim, 2) / spec.head_dim)
    header = StatisticsHeader(
        source=directory.name,
        fingerprint=source.fingerprint,
        num_layers=spec.num_layers,
        width=spec.hidden_size,
        tokens=4096,
        tokens_asked=4096,
        window=window,
        text="random",
        text_sha256="",
    )
    layers = {i: LayerStatistics(moment(), moment(), distances, frequencies) for i in range(spec.num_layers)}
    save_statistics(directory.with_name("synthetic-statistics.safetensors"), header, layers)


if __name__ == "__main__":
    main()
