"""Long contexts: perplexity by position, and a pass key found at several depths, for SmolLM2 and its smaller caches.

    python benchmarks/long_context.py [--dtype bfloat16] [--windows 3] [--keys 2] [--only NAME ...] [--calibrated 512 …]

The ways, and their checkpoints under `--work`, are those of frontier.py, which makes them. Perplexity is of windows of 8,192
tokens of Emma, which nothing was fitted to. A pass key of five digits stands somewhere in text of the same novel, and is
found where every digit is the most likely token after the question. `--calibrated` are windows to calibrate 2 of 3 heads in.
Each row is printed as soon as it is known and kept.
"""

from __future__ import annotations

import math
import random
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gqakit
from common import Kept, Table, arguments, environment
from frontier import WAYS, Bench
from gqakit.data.samples import as_batches
from gqakit.data.text import token_windows
from gqakit.evaluation.runners import as_runner
from gqakit.models.load import load
from gqakit.models.rounding import check_cache_types, rounded_cache
from gqakit.models.running import load_tokenizer
from gqakit.models.source import Source
from texts import scored

LONGEST = 8192
PARTS = (0, 512, 1024, 2048, 4096, LONGEST)
"""Positions between which perplexity is averaged."""
CONTEXTS = (1024, 4096, LONGEST)
DEPTHS = (0.1, 0.5, 0.9)
DEFAULT = (
    "16 bits",
    "q4_0+h",
    "0.667 of the heads",
    "0.667 of the heads × iq4_nl+h in its basis",
    "0.667 of the heads × iq4_nl+h in its basis, distilled",
    "0.333 of the heads × iq4_nl+h in its basis, distilled",
)
CALIBRATED = 32768
"""Tokens that windows of several lengths are calibrated on."""
OPENING = "There is a pass key hidden in the following text. Find it and remember it.\n\n"
KEY = "\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
QUESTION = "\n\nWhat is the pass key? The pass key is"


class Long:
    """The text, cut for both measurements."""

    def __init__(self, tokenizer: Any, text: str, windows: int, keys: int) -> None:
        self.tokenizer = tokenizer
        whole = scored(text)
        self.windows = token_windows(tokenizer, whole, window=LONGEST, tokens=LONGEST * windows)
        self.filler = self._ids(whole.content[: 8 * LONGEST])
        rng = random.Random(0)
        self.keys = ["".join(str(rng.randrange(10)) for _ in range(5)) for _ in range(keys)]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt(self, context: int, depth: float, key: str) -> tuple[Tensor, int]:
        """Token ids `[1, context]` with the key at a depth, and how many of its last ones are the answer."""
        opening, shown, question = self._ids(OPENING), self._ids(KEY.format(key=key)), self._ids(QUESTION)
        answer = self._ids(f" {key}")
        room = context - len(opening) - len(shown) - len(question) - len(answer)
        before = round(depth * room)
        ids = [*opening, *self.filler[:before], *shown, *self.filler[before:room], *question, *answer]
        return torch.tensor([ids]), len(answer)

    def measure(self, model: Any) -> dict[str, float]:
        """Perplexity between positions, and the share of pass keys found for each context."""
        found = self._perplexities(model)
        for context in CONTEXTS:
            tried = [self._finds(model, context, depth, key) for depth in DEPTHS for key in self.keys]
            found[f"found {context}"] = sum(tried) / len(tried)
        return found

    def _perplexities(self, model: Any) -> dict[str, float]:
        losses = torch.zeros(LONGEST - 1, dtype=torch.float64)
        runner = as_runner(model)
        with torch.inference_mode():
            for window, batch in enumerate(as_batches(self.windows)):
                wanted, done = batch["input_ids"][0, 1:], 0
                for logits in runner.logits(window, batch):
                    part = wanted[done : done + len(logits)]
                    logp = logits[: len(part)].float().log_softmax(-1).gather(1, part[:, None])[:, 0]
                    losses[done : done + len(part)] -= logp.double()
                    done += len(logits)
        losses /= len(self.windows)
        return {
            f"{start}-{end}": math.exp(float(losses[start : end - 1].mean()))
            for start, end in pairwise(PARTS)
        }

    def _finds(self, model: Any, context: int, depth: float, key: str) -> bool:
        ids, answer = self.prompt(context, depth, key)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=answer + 1).logits[0, :-1]
        return bool((logits.argmax(-1) == ids[0, -answer:]).all())


def main() -> None:
    """A row for each way."""
    parser = arguments(str(__doc__))
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--keys", type=int, default=2, help="pass keys, each at every depth")
    parser.add_argument("--tokens", type=int, default=49152, help="that the ways are calibrated on")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.set_defaults(layer_loss="corrected")
    parser.add_argument("--only", nargs="*", default=list(DEFAULT), help="names of ways")
    parser.add_argument("--calibrated", nargs="*", type=int, default=[], help="tokens per window")
    options = parser.parse_args()
    print(environment(), options.dtype)
    by_name = {way.name: way for way in WAYS}
    bench = Bench(options)
    text = Long(load_tokenizer(bench.source.checkpoint), "Emma", options.windows, options.keys)
    known = Kept(Path(options.work) / f"long-{options.dtype}-{options.windows}-{options.keys}.json")
    spans = [f"{start}-{end}" for start, end in pairwise(PARTS)]
    found = [f"found {context}" for context in CONTEXTS]
    table = Table("Emma", "KV bytes of 16 bit", "what", *spans, *found)
    dtype = getattr(torch, options.dtype)
    asked = {name: (by_name[name].types, partial(bench.checkpoint, by_name[name])) for name in options.only}
    for size in options.calibrated:
        asked[f"2 of 3 heads, calibrated in {size:,}"] = "f16", partial(_calibrated, bench, size)
    for name, (types, checkpoint) in asked.items():
        if name not in known:
            known[name] = _measured(bench, text, checkpoint(), types, dtype)
        row = known[name]
        cells = (*(f"{row[span]:.2f}" for span in spans), *(f"{row[each]:.0%}" for each in found))
        table.row(f"{row['bytes']:.1%}", name, *cells)


def _calibrated(bench: Bench, window: int) -> Path:
    """Two of three heads in every layer, keys and values apart, by statistics of windows of a length."""
    out = bench.work / f"calibrated-in-{window}"
    if not (out / "config.json").is_file():
        statistics = out.with_suffix(".safetensors")
        how: dict[str, Any] = {"text": bench.text, "tokens": CALIBRATED, "window": window, "gradients": False}
        gqakit.calibrate(bench.source.path, statistics, progress=False, **how)
        gqakit.convert(
            bench.source.path, out, kv_heads=2, allocation="uniform", kv_maps="separate", statistics=statistics,
            evaluate=False, progress=False,
        )  # fmt: skip
    return out


def _measured(bench: Bench, text: Long, path: Path, types: str, dtype: torch.dtype) -> dict[str, float]:
    source = Source.open(path)
    pair = check_cache_types(types, source.spec)
    assert pair is not None
    model = load(source.path, dtype=dtype)
    halves = 2 * source.spec.head_dim * 2 * sum(bench.spec.key_heads)
    with rounded_cache(model, source.spec, None if types == "f16" else pair):
        return {"bytes": source.spec.cache.bytes_in(pair) / halves, **text.measure(model)}


if __name__ == "__main__":
    main()
