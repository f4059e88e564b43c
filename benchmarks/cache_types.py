"""Types of the KV cache: our model of them against the engines that run them.

    python benchmarks/cache_types.py [--model smollm2|qwen|DIRECTORY] [--windows 1] [--types q8_0 q4_0 ...]
    python benchmarks/cache_types.py --engine transformers [--types quanto4/64 ...]

Exports the model to GGUF in f32, and prints for each type the perplexity of windows of WikiText-2 test in llama.cpp and in
transformers with keys and values rounded, and the divergence between them and from 16 bits. llama.cpp rotates heads where
their width is a multiple of 64; `--plain` keeps it from that. `--prepared` is a conversion to measure in the same way.

transformers' own `QuantizedCache` (whose types need optimum-quanto) reads the first half of a window at once, in full
precision, and the rest token by token, with everything before rounded; only the rest is scored, in both.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import QuantizedCache

from common import arguments, environment, text_of
from gqakit.core.cache_types import cache_pair
from gqakit.data.text import token_windows
from gqakit.exporters.export import export
from gqakit.models.engine_caches import ENGINE_CACHES
from gqakit.models.load import load
from gqakit.models.rounding import rounded_cache
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from zoo import SMOLLM2, fetch
from zoo.qwen import QWEN_CODER

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "export"))
from llama_cpp_logits import log_probs  # pyright: ignore[reportMissingImports]

TYPES = {
    "llama.cpp": ("q8_0", "q8_0,q4_0", "q4_0", "iq4_nl"),
    "transformers": ("fp8_per_tensor", "quanto4/64", "quanto4/32", "quanto2/64"),
}
MODELS = {"smollm2": SMOLLM2, "qwen": QWEN_CODER}


def main() -> None:
    """Print a line for each type."""
    parser = arguments(str(__doc__))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prepared", type=Path, default=None)
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--engine", choices=TYPES, default="llama.cpp")
    parser.add_argument("--types", nargs="+", default=None)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    named = options.model
    path = options.prepared or (fetch(MODELS[named]) if named in MODELS else Path(named))
    source = Source.open(path)
    tokenizer = load_tokenizer(source.checkpoint)
    windows = token_windows(
        tokenizer,
        text_of(options.wikitext, "test"),
        window=options.window,
        tokens=options.window * options.windows,
    )
    print(environment(), flush=True)
    model: Any = load(source.path, dtype=torch.float32)
    exact = [ours(model, source, None, window) for window in windows]
    if options.engine == "transformers":
        half = options.window // 2
        for types in options.types or TYPES["transformers"]:
            made = [ours(model, source, types, window)[half:] for window in windows]
            theirs = [token_by_token(model, types, window, half) for window in windows]
            show(types, made, theirs, [each[half:] for each in exact], windows[:, half:], "transformers")
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        export(source.path, file, to="gguf", dtype="f32", progress=False)
        show("f32", exact, [log_probs(file, window.tolist()) for window in windows], exact, windows)
        turned = "" if options.plain or source.spec.head_dim % 64 else "+h"
        for types in options.types or TYPES["llama.cpp"]:
            key, _, value = types.partition(",")
            name = ",".join(f"{part}{turned}" for part in types.split(","))
            made = [ours(model, source, name, window) for window in windows]
            theirs = [
                log_probs(file, window.tolist(), key, value or key, rotate=not options.plain)
                for window in windows
            ]
            show(name, made, theirs, exact, windows)


@torch.inference_mode()
def token_by_token(model: Any, types: str, window: torch.Tensor, start: int) -> torch.Tensor:
    """Log-probabilities behind the first positions of a window, with what lies before in transformers' own cache."""
    asked = dict(ENGINE_CACHES["transformers"].spelled)[types]
    how = json.loads(asked)
    if how["backend"] != "fp8":  # which has no positions in full precision beside it
        how["residual_length"] = 1
    cache = QuantizedCache(config=model.config, **how)
    model(input_ids=window[None, :start], past_key_values=cache)
    found = [
        model(input_ids=window[None, at : at + 1], past_key_values=cache).logits[0]
        for at in range(start, len(window))
    ]
    return torch.cat(found).float().log_softmax(-1).half()


@torch.inference_mode()
def ours(model: Any, source: Source, types: str | None, window: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of a window in transformers, in half precision to keep them."""
    with rounded_cache(model, source.spec, None if types is None else cache_pair(types)):
        return model(input_ids=window[None]).logits[0].float().log_softmax(-1).half()


def show(
    name: str, made: Any, theirs: Any, exact: Any, windows: torch.Tensor, engine: str = "llama.cpp"
) -> None:
    """A line: perplexities, and divergences in nats per token."""
    print(
        f"{name:16} perplexity {perplexity(made, windows):8.3f} ours {perplexity(theirs, windows):8.3f} {engine}; KL from "
        f"16 bits {distance(exact, made):.4f} ours {distance(exact, theirs):.4f} {engine}; from {engine} to ours "
        f"{distance(theirs, made):.5f}",
        flush=True,
    )


def perplexity(found: Any, windows: torch.Tensor) -> float:
    """Over all windows."""
    losses = [
        -log_p[:-1].float().gather(1, window[1:, None]) for log_p, window in zip(found, windows, strict=True)
    ]
    return float(torch.cat(losses).mean().exp())


def distance(one: Any, other: Any) -> float:
    """Mean KL from one to the other over the predicted positions."""
    found = []
    for a, b in zip(one, other, strict=True):
        a, b = a[:-1].float(), b[:-1].float()
        found.append(float((a.exp() * (a - b)).sum(-1).mean()))
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
