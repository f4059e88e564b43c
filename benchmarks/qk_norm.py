"""Keys behind a normalisation: what folding them there keeps against `mean` before it, and what the maps cost to run.

    OMP_NUM_THREADS=1 python benchmarks/qk_norm.py

A small Qwen3 is trained on gqakit's own text, byte by byte, then its keys alone are merged. Recorded in
docs/results/qk-norm.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

import gqakit
from common import Table, arguments, environment
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.store import StatisticsFile, StatisticsHeader, save_statistics
from gqakit.conversion.convert import convert_checkpoint
from gqakit.models.load import use_attention_interface
from gqakit.models.source import Source
from gqakit.planning.make import plan

WINDOW, KV_HEADS = 128, 8


def text(name: str) -> Tensor:
    """The bytes of a bundled text, in windows."""
    data = files("gqakit").joinpath("data", "assets", name).read_bytes()
    ids = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


def trained(folder: Path, seconds: float, layers: int) -> Path:
    """A Qwen3 of width 128 with 8 KV heads and as many query heads, trained for some seconds of processor time."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=KV_HEADS,
        num_key_value_heads=KV_HEADS, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model, windows = Qwen3ForCausalLM(config), text("calibration.txt")
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    start, steps, loss = time.process_time(), 0, torch.zeros(())
    while (share := (time.process_time() - start) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, (steps + 1) / 50) * (1 - share)
        batch = windows[torch.randint(len(windows), (8,))]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        steps += 1
    print(f"{steps} steps, training loss {float(loss.detach()):.3f} nats per byte")
    model.eval().save_pretrained(folder)
    return folder


def calibrated(source: Source, windows: Tensor) -> StatisticsFile:
    """Statistics on some windows."""
    model = gqakit.load(source.path, dtype=torch.float32)
    use_attention_interface(model, source.spec)
    header = StatisticsHeader(
        source=source.name, fingerprint=source.fingerprint, num_layers=source.spec.num_layers,
        width=source.spec.hidden_size, tokens=windows.numel(), tokens_asked=windows.numel(),
        window=windows.shape[1], text="bundled", text_sha256="",
    )  # fmt: skip
    layers = collect_statistics(model, source.spec, windows)
    return save_statistics(source.path.with_suffix(".statistics.safetensors"), header, layers)


def keys_merged(
    source: Source, known: StatisticsFile, heads: int, merge: str, out: Path, method: str = "optimal"
) -> tuple[Path, float]:
    """A conversion of the keys alone, and the mean of the layers' key errors."""
    made = plan(
        source.path, kv_heads=heads, statistics=known.path, merge=merge, method=method, format="grouped", kv_maps="separate",
        progress=False,
    )  # fmt: skip
    alone = tuple(range(KV_HEADS))
    layers = tuple(layer.model_copy(update={"value": alone, "value_error": 0.0}) for layer in made.layers)
    convert_checkpoint(source, made.model_copy(update={"layers": layers}), known, out, "", overwrite=True)
    return out, sum(layer.key_error for layer in layers) / len(layers)


@torch.inference_mode()
def scores(source: Path, other: Path, windows: Tensor) -> tuple[float, float, float]:
    """Perplexity per byte of both, and the KL of the second to the first."""
    logp, logq = (
        gqakit.load(path, dtype=torch.float32)(input_ids=windows).logits.log_softmax(-1)
        for path in (source, other)
    )
    targets = windows[:, 1:, None]
    before, after = (-each[:, :-1].gather(-1, targets).mean() for each in (logp, logq))
    return float(before.exp()), float(after.exp()), float((logp.exp() * (logp - logq)).sum(-1).mean())


def quality(source: Source, known: StatisticsFile, work: Path) -> None:
    """The table of losses."""
    windows = text("evaluation.txt")[:96]
    rows = Table(
        "Keys alone",
        "KV heads for keys",
        "keys merged",
        "key error",
        "perplexity per byte",
        "rise",
        "KL, nats",
    )
    for heads in (6, 4, 2, 1):
        for merge, how in (("mean", "`mean`, before the norm"), ("fold", "`fold`, behind the norm")):
            out, error = keys_merged(source, known, heads, merge, work / f"{merge}-{heads}")
            before, after, kl = scores(source.path, out, windows)
            rows.row(
                f"{heads} of {KV_HEADS}", how, f"{error:.4f}", f"{before:.3f} → {after:.3f}",
                f"{after / before - 1:+.2%}", f"{kl:.5f}",
            )  # fmt: skip


def best_of(runs: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Least processor time of each call, in seconds; they take turns, so that they share what else the machine does."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, times, strict=True):
            start = time.process_time()
            run()
            found.append(time.process_time() - start)
    return [min(found) for found in times]


@torch.inference_mode()
def overhead(work: Path) -> None:
    """What the maps cost at prefill and decode, in layers as wide as Qwen3-0.6B's: 16 query and 8 KV heads of 128."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512, hidden_size=1024, intermediate_size=3072, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=KV_HEADS, head_dim=128, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(work / "wide")
    source = Source.open(work / "wide")
    ids = torch.randint(0, 256, (1, 512))
    known = calibrated(source, ids.view(4, 128))
    names = ("source", "keys 8 to 4, `mean`", "keys 8 to 4, `fold` with maps")
    paths = [source.path]
    paths += [
        keys_merged(source, known, 4, how, work / f"wide-{how}", "neighbour")[0] for how in ("mean", "fold")
    ]
    models: list[Any] = [gqakit.load(path, dtype=torch.float32) for path in paths]
    prefill = best_of([partial(model, input_ids=ids, use_cache=False) for model in models], 8)
    caches = [model(input_ids=ids, use_cache=True).past_key_values for model in models]
    steps = [
        partial(model, input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        for model, cache in zip(models, caches, strict=True)
    ]
    decode = best_of(steps, 60)
    rows = Table("Running it", "model", "prefill of 512, ms", "ratio", "decode at 512, ms", "ratio")
    for name, before, after in zip(names, prefill, decode, strict=True):
        rows.row(
            name, f"{1000 * before:.1f}", f"{before / prefill[0]:.3f}", f"{1000 * after:.2f}", f"{after / decode[0]:.3f}"
        )  # fmt: skip


def main() -> None:
    """Train, convert, measure."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=90.0, help="processor time of the training")
    parser.add_argument("--layers", type=int, default=3)
    given = parser.parse_args()
    work = given.work / "qk-norm"
    work.mkdir(parents=True, exist_ok=True)
    print(environment())
    source = Source.open(trained(work / "source", given.seconds, given.layers))
    known = calibrated(source, text("calibration.txt")[:128])
    quality(source, known, work)
    overhead(work)


if __name__ == "__main__":
    main()
