"""Whole-model decoding: SmolLM2 against itself with a third of the KV heads, in transformers on one thread.

    OMP_NUM_THREADS=1 python benchmarks/decode_model.py
    OMP_NUM_THREADS=1 python benchmarks/decode_model.py SOURCE CONVERTED ...

Without directories the conversions are made here: one KV head per layer, once as an ordinary checkpoint and once as a
grouped one, on the calibration text that comes with gqakit, as speed does not depend on quality. The cache is filled
with random keys and values; then all models take turns at decoding a few tokens. Times are the processor's own, of the
one thread, medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from common import Table, environment, third_of_smollm2
from gqakit.models.load import load
from zoo import SMOLLM2, fetch


def main() -> None:
    """Convert where needed, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", help="the source, then what it was converted to")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out"), help="scratch directory")
    parser.add_argument("--context", type=int, nargs="+", default=[16, 4096, 8000])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--cache", nargs="+", default=["dynamic", "static"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=3, help="decoded in each turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(environment())
    paths = options.models or [
        fetch(SMOLLM2), *(third_of_smollm2(options.work, form) for form in ("uniform", "grouped")),
    ]  # fmt: skip
    models = {path.name: load(path, dtype=torch.float32) for path in paths}
    header = ("cache", "batch", "positions", "model", "cache, MB", "ms a token", "tokens/s", "times as fast")
    table = Table("Decoding", *header)
    for kind in options.cache:
        for batch in options.batch:
            for context in options.context:
                _measure(table, models, kind, batch, context, options.rounds, options.tokens)


def _measure(
    table: Table, models: dict[str, Any], kind: str, batch: int, context: int, rounds: int, tokens: int
) -> None:
    times: dict[str, list[float]] = {name: [] for name in models}
    # One token warms up.
    caches = {
        name: _cache(model, kind, batch, context, rounds * tokens + 1) for name, model in models.items()
    }
    ids = torch.full((batch, 1), 100)
    for turn in range(rounds + 1):
        for name, model in models.items():
            start = time.thread_time()
            for _ in range(tokens if turn else 1):
                model(ids, past_key_values=caches[name])
            if turn:
                times[name].append((time.thread_time() - start) / tokens)
    first = times[next(iter(times))]
    for name, each in times.items():
        size = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[name].layers)
        ratio = statistics.median(a / b for a, b in zip(first, each, strict=True))
        median = statistics.median(each)
        table.row(
            kind,
            str(batch),
            str(context),
            name,
            f"{size / 1e6:.1f}",
            f"{median * 1e3:.1f}",
            f"{batch / median:.1f}",
            f"{ratio:.2f}",
        )


def _cache(model: Any, kind: str, batch: int, context: int, more: int) -> Any:
    """A cache with that number of random positions, and room for more."""
    config, rng = model.config, torch.Generator().manual_seed(0)
    cache = (
        StaticCache(config=config, max_cache_len=context + more)
        if kind == "static"
        else DynamicCache(config=config)
    )
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for_each = [
            projection.out_features // attention.head_dim
            for projection in (attention.k_proj, attention.v_proj)
        ]
        states = [torch.randn(batch, heads, context, attention.head_dim, generator=rng) for heads in for_each]
        cache.update(states[0], states[1], index)
    return cache


if __name__ == "__main__":
    main()
