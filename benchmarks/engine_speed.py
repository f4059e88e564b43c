"""Decoding in llama.cpp: SmolLM2 against itself with a third of the KV heads, on one thread.

    python benchmarks/engine_speed.py
    python benchmarks/engine_speed.py SOURCE CONVERTED ...

Without directories the conversion is made here: one KV head per layer, on the calibration text that comes with gqakit,
as speed does not depend on quality. All are exported to GGUF and run in one process through xllamacpp
(`gqakit[engines]`). Each first reads a prompt of random tokens; then they take turns at generating a few more. Times
are the processor's, medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import xllamacpp as _xllamacpp

from common import Table, environment, third_of_smollm2
from gqakit.exporters.export import export
from gqakit.models.source import Source
from zoo import SMOLLM2, fetch

xllamacpp: Any = _xllamacpp  # compiled, without types
BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def main() -> None:
    """Convert and export where needed, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", help="the source, then what it was converted to")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out"), help="scratch directory")
    parser.add_argument(
        "--context", type=int, nargs="+", default=[16, 4096, 8000], help="tokens in the prompt"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=8, help="generated in each turn")
    parser.add_argument("--dtype", choices=tuple(BYTES), default="f16", help="of the weights")
    options = parser.parse_args()
    print(f"{environment()}, xllamacpp {xllamacpp.__version__}")
    paths = options.models or [fetch(SMOLLM2), third_of_smollm2(options.work, "grouped")]
    table = Table(
        f"llama.cpp, {options.dtype} weights, f16 cache",
        *("prompt", "model", "cache, MB", "ms a token", "tokens/s", "times as fast"),
    )
    with tempfile.TemporaryDirectory() as scratch:
        files: dict[Path, Path] = {}
        for path in paths:
            files[path] = Path(scratch) / f"{path.name}.gguf"
            export(path, files[path], to="gguf", dtype=options.dtype, progress=False)
        for context in options.context:
            _measure(table, files, context, options.rounds, options.tokens)


def _measure(table: Table, files: dict[Path, Path], context: int, rounds: int, tokens: int) -> None:
    prompt = [random.Random(0).randrange(1000, 40000) for _ in range(context)]
    servers = {path: _server(file, context + tokens + 1) for path, file in files.items()}
    times: dict[Path, list[float]] = {path: [] for path in files}
    for turn in range(rounds + 1):  # the first reads the prompt
        for path, server in servers.items():
            start = time.process_time()
            _generate(server, prompt, tokens)
            if turn:
                times[path].append((time.process_time() - start) / tokens)
    first = next(iter(times.values()))
    for path, each in times.items():
        spec = Source.open(path).spec
        size = 2 * sum(spec.key_heads + spec.value_heads) * spec.head_dim * context
        ratio = statistics.median(a / b for a, b in zip(first, each, strict=True))
        median = statistics.median(each)
        table.row(
            f"{context:,}",
            path.name,
            f"{size / 1e6:.1f}",
            f"{median * 1e3:.1f}",
            f"{1 / median:.1f}",
            f"{ratio:.2f}",
        )


def _server(file: Path, context: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = context, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.verbosity = 0
    return xllamacpp.Server(params)


def _generate(server: Any, prompt: list[int], tokens: int) -> None:
    """Exactly that number of tokens; all but the last of the prompt are in the cache from the turn before."""
    request = {
        "prompt": prompt,
        "n_predict": tokens,
        "temperature": 0,
        "cache_prompt": True,
        "ignore_eos": True,
    }
    result = server.handle_completions(request)
    result = result if isinstance(result, dict) else json.loads(result)
    if (made := result["usage"]["completion_tokens"]) != tokens:
        raise SystemExit(f"llama.cpp generated {made} tokens, expected {tokens}: {result}")


if __name__ == "__main__":
    main()
