"""Keys behind a normalisation: what folding them there keeps against `mean` before it, and what the maps cost to run.

    OMP_NUM_THREADS=1 python benchmarks/qk_norm.py

A small Qwen3 and a small OLMo 2 are trained on gqakit's own text, byte by byte, then their keys alone are merged. SmolLM2
gets normalised keys and planted copies of its heads, which must cost nothing. Recorded in docs/results/qk-norm.md.
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
from transformers import Olmo2Config, Olmo2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

import gqakit
from common import Table, arguments, environment
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.store import StatisticsFile, StatisticsHeader, save_statistics
from gqakit.conversion.convert import Writing, convert_checkpoint
from gqakit.core.statistics import own_moments
from gqakit.data.batches import batches_of
from gqakit.data.options import read_named
from gqakit.models.load import use_attention_interface
from gqakit.models.source import Source
from gqakit.planning.make import plan
from zoo import SMOLLM2, fetch

WINDOW, KV_HEADS = 128, 8


def text(name: str) -> Tensor:
    """The bytes of a bundled text, in windows."""
    data = files("gqakit").joinpath("data", "assets", name).read_bytes()
    ids = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


def untrained(family: str, layers: int) -> Any:
    """A model of width 128 with 8 KV heads and as many query heads: of 32 channels in a Qwen3, of 16 in an OLMo 2."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": layers,
        "num_attention_heads": KV_HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 1024,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    if family == "olmo2":
        return Olmo2ForCausalLM(Olmo2Config(**sizes))
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=32))


def trained(folder: Path, family: str, seconds: float, layers: int) -> Path:
    """A small model, trained for some seconds of processor time."""
    model, windows = untrained(family, layers), text("calibration.txt")
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
    alone = tuple(range(source.spec.key_heads[0]))
    layers = tuple(layer.model_copy(update={"value": alone, "value_error": 0.0}) for layer in made.layers)
    convert_checkpoint(
        source, made.model_copy(update={"layers": layers}), known, out, "", Writing(overwrite=True)
    )
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


def quality(family: str, work: Path, seconds: float, layers: int) -> None:
    """The table of losses."""
    windows = text("evaluation.txt")[:96]
    source = Source.open(trained(work / f"source-{family}", family, seconds, layers))
    known = calibrated(source, text("calibration.txt")[:128])
    rows = Table(
        f"Keys alone, {family}",
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


def normalised_copies(original: Source, out: Path) -> Path:
    """SmolLM2 as a Qwen3, with each of its 3 KV heads 3 times: synthetic, as the copies are planted.

    Queries and keys are normalised, each channel with a gain that gives back the mean length that calibration has seen, and
    every copy is turned in its frequency pairs as the query head that reads it.
    """
    source, ids = original, tokens(original, "calibration", 4)
    model = gqakit.load(source.path, dtype=torch.float32)
    use_attention_interface(model, source.spec)
    found, spec, weights = collect_statistics(model, source.spec, ids), source.spec, model.state_dict()
    first = spec.head_dim // 2
    rng = torch.Generator().manual_seed(0)
    for layer in range(spec.num_layers):
        at, read = f"model.layers.{layer}.self_attn.", source.layer(layer)
        angle = torch.rand(spec.num_heads, first, 1, generator=rng) * 2 * torch.pi
        copies = torch.arange(spec.num_heads) // (spec.num_heads // spec.key_heads[0])
        for name, part in (("q", read.query), ("k", read.key.select(copies))):
            own = own_moments(part, found[layer].input).diagonal(dim1=1, dim2=2).sum(-1)  # E‖k‖² of each head
            weights[f"{at}{name}_norm.weight"] = (
                (own.mean() / spec.head_dim).sqrt().float().expand(spec.head_dim).clone()
            )
            one, other = part.weight.float()[:, :first], part.weight.float()[:, first:]
            rows = [angle.cos() * one - angle.sin() * other, angle.sin() * one + angle.cos() * other]
            weights[f"{at}{name}_proj.weight"] = torch.cat(rows, 1).flatten(0, 1)
        weights[f"{at}v_proj.weight"] = read.value.select(copies).weight.float().flatten(0, 1)
    settings = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures")}
    config = Qwen3Config(**{**settings, "num_key_value_heads": spec.num_heads, "head_dim": spec.head_dim})
    made = Qwen3ForCausalLM(config)
    made.load_state_dict(weights)
    made.save_pretrained(out)
    return out


def planted(work: Path) -> None:
    """The table of a conversion whose best answer is known to cost nothing."""
    original = Source.open(fetch(SMOLLM2))
    source = Source.open(normalised_copies(original, work / "planted"))
    held_out = tokens(original, "evaluation", 4)
    known = calibrated(source, tokens(original, "calibration", 8))
    rows = Table(
        "SmolLM2 with normalised keys, each KV head planted 3 times", "keys merged 9 to 3", "key error",
        "perplexity", "KL, nats",
    )  # fmt: skip
    for merge in ("mean", "fold"):
        out, error = keys_merged(source, known, 3, merge, work / f"planted-{merge}", "neighbour")
        before, after, kl = scores(source.path, out, held_out)
        rows.row(f"`{merge}`", f"{error:.2e}", f"{before:.3f} → {after:.3f}", f"{kl:.2e}")


def tokens(source: Source, text: str, windows: int) -> Tensor:
    """The first windows of 256 tokens of a bundled text."""
    batches = batches_of(source, read_named(None, text), window=256, tokens=256 * windows)
    return torch.cat([batch["input_ids"] for batch in batches])


def in_turns(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Processor seconds of each call in each round; calls take turns, so that they share what else the machine does."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, times, strict=True):
            start = time.process_time()
            run()
            found.append(time.process_time() - start)
    return times


@torch.inference_mode()
def overhead(work: Path) -> None:
    """What the maps cost at prefill and decode, in layers as wide as Qwen3-0.6B's: 16 query and 8 KV heads of 128."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512, hidden_size=1024, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=16,
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
    prefill = in_turns([partial(model, input_ids=ids, use_cache=False) for model in models], 9)
    caches = [model(input_ids=ids, use_cache=True).past_key_values for model in models]
    steps = [
        partial(model, input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        for model, cache in zip(models, caches, strict=True)
    ]
    decode = in_turns(steps, 80)
    rows = Table(
        "Running it", "model", "prefill of 512, against the source", "decode at 512, against the source"
    )
    for name, before, after in zip(names, prefill, decode, strict=True):
        rows.row(name, against(before, prefill[0]), against(after, decode[0]))
    rows.row(
        "maps alone: `fold` against `mean`", against(prefill[2], prefill[1]), against(decode[2], decode[1])
    )


def against(times: list[float], others: list[float]) -> str:
    """The median ratio of two calls that took turns, with its quartiles."""
    ratios = torch.tensor([one / other for one, other in zip(times, others, strict=True)])
    low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Train, convert, measure."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=90.0, help="processor time of each training")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument(
        "--part", choices=("qwen3", "olmo2", "planted", "overhead"), help="one of the tables alone"
    )
    given = parser.parse_args()
    work = given.work / "qk-norm"
    work.mkdir(parents=True, exist_ok=True)
    print(environment())
    for part in (given.part,) if given.part else ("qwen3", "olmo2", "planted", "overhead"):
        if part in ("qwen3", "olmo2"):
            quality(part, work, given.seconds, given.layers)
        else:
            {"planted": planted, "overhead": overhead}[part](work)


if __name__ == "__main__":
    main()
