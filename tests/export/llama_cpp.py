"""A GGUF file run by llama.cpp (xllamacpp), in a process of its own: it says how large its cache is only in its log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CONTEXT = 4096

SCRIPT = """
import json, sys
import xllamacpp

path, prompt, count, context, exact = json.loads(sys.argv[1])
flash = xllamacpp.llama_flash_attn_type
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = context, 1, 0, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED if exact else flash.LLAMA_FLASH_ATTN_TYPE_ENABLED
if exact:
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.verbosity = 4
server = xllamacpp.Server(params)
result = server.handle_completions(
    {"prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": 20, "cache_prompt": False}
)
print("RESULT" + json.dumps(result if isinstance(result, dict) else json.loads(result)), flush=True)
"""


@dataclass(frozen=True)
class Run:
    """What came out: greedy tokens, for each the log-probabilities of the best few by token id, the cache in MiB."""

    tokens: list[int]
    logprobs: list[dict[int, float]]
    prompt_tokens: int
    cache_mib: float


def run(
    path: Path, prompt: list[int] | str, count: int, *, exact: bool = False, context: int = CONTEXT
) -> Run:
    """Generate greedily after token ids or a text.

    With flash attention and a cache in f16, or `exact`: without and in f32. Flash attention rounds keys and values to
    f16 whatever the cache is; without it every layer's V takes the room of the largest.
    """
    argument = json.dumps([str(path), prompt, count, context, exact])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument], capture_output=True, text=True, timeout=120, check=False
    )
    found = re.search(r"RESULT(\{.*)", done.stdout)
    assert found, done.stderr[-3000:] + done.stdout[-1000:]
    # The log may write into the same line behind the result.
    result, _ = json.JSONDecoder().raw_decode(found[1])
    size = re.search(r"llama_kv_cache: size =\s+([\d.]+) MiB", done.stderr + done.stdout)
    assert size, done.stderr
    content = result["choices"][0]["logprobs"]["content"]
    return Run(
        tokens=[step["id"] for step in content],
        logprobs=[{top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in content],
        prompt_tokens=result["usage"]["prompt_tokens"],
        cache_mib=float(size[1]),
    )
