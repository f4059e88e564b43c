"""A model of Llama-2-7B's shape, or one layer of 70B's, with random weights: each step with time, memory, bytes.

    python benchmarks/at_scale.py FOLDER --shape 7b
    python benchmarks/at_scale.py FOLDER --shape 70b-layer
    python benchmarks/at_scale.py FOLDER --shape 7b-layers --random-statistics --steps plan,copy,convert,verify

The last one is four layers of 7B with statistics that nobody took, for `convert` against a copy of the same bytes; with
`--plan "--method neighbour"` no time goes to a search.

The checkpoint is written shard by shard into FOLDER (13.5 GB for 7b; room for about 35 GB is needed) and removed with all
that was made of it at the end, unless `--keep` is given. Each step is one command in a process of its own, so its peak
memory is that command's, with Python, torch and transformers in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common import Table
from gqakit.calibration.store import StatisticsHeader, writing_statistics
from gqakit.core.statistics import LayerStatistics
from gqakit.models.source import Source

POOL = 2**26
"""Random numbers that tensors are cut from: each begins at another place of the same ones."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with as many KV heads as query heads."""

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int = 32000

    def config(self) -> dict[str, object]:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": 4096,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def layer(self, index: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a layer's tensors."""
        at, square = f"model.layers.{index}.", (self.width, self.width)
        return {
            **{f"{at}self_attn.{name}_proj.weight": square for name in "qkvo"},
            f"{at}mlp.gate_proj.weight": (self.inner, self.width),
            f"{at}mlp.up_proj.weight": (self.inner, self.width),
            f"{at}mlp.down_proj.weight": (self.width, self.inner),
            f"{at}input_layernorm.weight": (self.width,),
            f"{at}post_attention_layernorm.weight": (self.width,),
        }

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Names and shapes of the tensors of each file."""
        yield {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for index in range(self.layers):
            yield self.layer(index)
        yield {"model.norm.weight": (self.width,), "lm_head.weight": (self.vocabulary, self.width)}


SHAPES = {
    "7b": Shape(layers=32, width=4096, inner=11008, heads=32),
    "7b-layers": Shape(layers=4, width=4096, inner=11008, heads=32),
    "70b-layer": Shape(layers=1, width=8192, inner=28672, heads=64),
    "tiny": Shape(layers=3, width=64, inner=96, heads=8, vocabulary=512),
}


def write_model(folder: Path, shape: Shape) -> None:
    """A checkpoint with random weights and a tokenizer, one shard in memory at a time."""
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=rng).bfloat16()
    map_of: dict[str, str] = {}
    count = shape.layers + 2
    for number, tensors in enumerate(shape.shards(), 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        made = {key: _random(pool, sizes, rng) for key, sizes in tensors.items()}
        save_file(made, folder / name, metadata={"format": "pt"})
        map_of |= dict.fromkeys(made, name)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": map_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config()))
    _tokenizer(shape.vocabulary).save_pretrained(folder)


def write_statistics(folder: Path) -> None:
    """Random statistics of the model in a folder, one layer in memory at a time."""
    source = Source.open(folder / "model")
    spec, rng = source.spec, torch.Generator().manual_seed(0)
    size = spec.hidden_size + 1

    def moment() -> Tensor:
        rows = torch.randn(2 * size, size, generator=rng)
        rows[:, -1] = 1
        return rows.T @ rows / len(rows)

    frequencies = 10000.0 ** (-torch.arange(0, spec.head_dim, 2) / spec.head_dim)
    header = StatisticsHeader(
        source="model", fingerprint=source.fingerprint, num_layers=spec.num_layers, width=spec.hidden_size,
        tokens=2 * size, tokens_asked=2 * size, window=512, text="random", text_sha256="",
    )  # fmt: skip
    with writing_statistics(folder / "statistics.safetensors", header) as write:
        for layer in range(spec.num_layers):
            distances = torch.rand(spec.key_heads[layer], 512, generator=rng)
            write(spec.key(layer), LayerStatistics(moment(), moment(), distances, frequencies))


def _random(pool: Tensor, sizes: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Ones for a normalisation, else numbers whose spread keeps the size of what goes through."""
    if len(sizes) == 1:
        return torch.ones(sizes, dtype=torch.bfloat16)
    made = torch.empty(sizes, dtype=torch.bfloat16)
    flat, begin = made.view(-1), int(torch.randint(POOL, (), generator=rng))
    for at in range(0, len(flat), POOL):
        part = flat[at : at + POOL]
        part.copy_(pool.roll(-begin)[: len(part)])
    return made.mul_(sizes[1] ** -0.5)


def _tokenizer(vocabulary: int):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, 2000), special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    text = files("gqakit").joinpath("data", "assets", "calibration.txt").read_text(encoding="utf-8")
    inner.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@dataclass(frozen=True)
class Cost:
    """What a step took: seconds on the clock and of processors, peak resident bytes, bytes read and written."""

    seconds: float
    processor: float
    peak: int
    read: int
    written: int


def measured(arguments: list[str], cwd: Path) -> Cost:
    """Run a command and see what it takes; its output goes through."""
    started = time.monotonic()
    process = subprocess.Popen(arguments, cwd=cwd)
    read = written = 0
    while True:
        try:
            counts = dict(
                line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines()
            )
            read, written = int(counts["rchar"]), int(counts["wchar"])
        except (OSError, ValueError, KeyError):
            pass
        found, status, usage = os.wait4(process.pid, os.WNOHANG)
        if found:
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {process.returncode}")
    seconds = time.monotonic() - started
    return Cost(seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss, read, written)


def steps(args: argparse.Namespace) -> dict[str, list[str]]:
    """The commands, by the name of the step."""
    run = ["--blockwise", "always", *(["--max-memory", args.max_memory] if args.max_memory else [])]
    data = ["--tokens", "1024", "--window", "512", "--dtype", args.dtype, *run]
    return {
        "copy": ["cp", "-r", "model", "copy"],
        "calibrate": ["gqakit", "calibrate", "model", "-o", "statistics.safetensors", *data],
        "plan": ["gqakit", "plan", "model", "-o", "plan.json", "--statistics", "statistics.safetensors", "--kv-ratio", "0.5",
                 "--kv-maps", "separate", "--layer-loss", "error", *args.plan.split()],
        "convert": ["gqakit", "convert", "model", "-o", "out", "--plan", "plan.json", "--no-evaluate"],
        "verify": ["gqakit", "verify", "model", "out", *run],
        "evaluate": ["gqakit", "evaluate", "model", "out", *data],
    }  # fmt: skip


def main() -> None:
    """Write the model, run the steps, print the table, clean up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a directory to be made, outside the repository")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--dtype", default="bfloat16", help="precision of forward passes")
    parser.add_argument("--max-memory", help="of every step that runs a model, such as 3GiB")
    parser.add_argument("--steps", default="calibrate,plan,convert,verify", help="which, in order")
    parser.add_argument("--random-statistics", action="store_true", help="in place of `calibrate`")
    parser.add_argument("--plan", default="", help="further options of plan")
    parser.add_argument("--keep", action="store_true", help="leave everything; a second run finds the model")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    table = Table(
        f"{args.shape}, forward passes in {args.dtype}",
        "step",
        "seconds",
        "processor seconds",
        "peak MB",
        "read GB",
        "written GB",
    )
    try:
        if not (args.folder / "model" / "config.json").exists():
            started = time.monotonic()
            write_model(args.folder / "model", SHAPES[args.shape])
            print(f"written in {time.monotonic() - started:.0f} s", flush=True)
        if args.random_statistics and not (args.folder / "statistics.safetensors").exists():
            write_statistics(args.folder)
        commands = steps(args)
        for name in args.steps.split(","):
            cost = measured(commands[name], args.folder)
            cells = (f"{cost.seconds:.0f}", f"{cost.processor:.0f}", f"{cost.peak / 1e6:.0f}")
            table.row(name, *cells, f"{cost.read / 1e9:.2f}", f"{cost.written / 1e9:.2f}")
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
