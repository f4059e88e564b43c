"""A checkpoint in llama.cpp against transformers: the same greedy tokens, and a cache as small as the heads say.

    python benchmarks/engine_check.py CHECKPOINT [--tokens 24]

Exports to GGUF (f32) beside the system's temporary files and runs it through xllamacpp (`pip install 'gqakit[engines]'`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import gqakit
from gqakit.exporters.export import export
from gqakit.models.source import Source

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "export"))
from llama_cpp import CONTEXT, run  # pyright: ignore[reportMissingImports]

PROMPTS = (
    "The best way to learn how to cook is",
    "In 1969 two astronauts",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees, and",
)


def main() -> None:
    """Print a line for each prompt, then the cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(str(options.checkpoint))
    model: Any = gqakit.load(options.checkpoint, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gguf"
        result = export(options.checkpoint, path, to="gguf", dtype="f32", progress=False)
        print(f"{result.kind}, query heads {result.query_heads}, KV heads {result.kv_heads}")
        print(f"parameters {result.parameters_before:,} → {result.parameters:,}")
        for prompt in PROMPTS:
            ids = tokenizer(prompt)["input_ids"]
            with torch.inference_mode():
                out = model.generate(
                    torch.tensor([ids]), max_new_tokens=options.tokens, do_sample=False, use_cache=True
                )[0, len(ids) :].tolist()
                first = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            exact = run(path, ids, len(out), exact=True)
            flash = run(path, ids, len(out))
            text = run(path, prompt, 1)
            apart = max(abs(first[token].item() - value) for token, value in exact.logprobs[0].items())
            agree = [sum(a == b for a, b in zip(got.tokens, out, strict=False)) for got in (exact, flash)]
            print(
                f"{prompt!r}: {agree[0]} of {len(out)} tokens as in transformers in f32, {agree[1]} with flash attention; "
                f"first log-probabilities differ by {apart:.1e}; {text.prompt_tokens} prompt tokens for {len(ids)}"
            )
    spec = Source.open(options.checkpoint).spec
    planned = 2 * sum(result.kv_heads) * spec.head_dim * 2
    print(
        f"KV cache in f16 at {CONTEXT} tokens: {flash.cache_mib:.2f} MiB, planned {planned * CONTEXT / 2**20:.2f}"
    )


if __name__ == "__main__":
    main()
