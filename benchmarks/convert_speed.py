"""Time and memory of `gqakit convert` on a synthetic 2 GB checkpoint, and of `gqakit --help`.

    python benchmarks/convert_speed.py

Prints peak resident memory, the ratio of the conversion's time to that of `cp` of the same bytes, and how long
the help text takes. Conversion and copy alternate, so the ratio holds on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 20,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    model = options.work / "synthetic-2gb"
    subprocess.run(
        [sys.executable, __file__.replace("convert_speed", "synthetic_checkpoint"), str(model)], check=True
    )
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    out, copy = options.work / "synthetic-out", options.work / "synthetic-copy"
    plan = options.work / "synthetic-plan.json"
    base = [sys.executable, "-m", "gqakit"]
    # Even over the layers: the model is random and has no tokenizer, so no losses can be measured.
    how = [
        "--statistics",
        str(model.with_name("synthetic-statistics.safetensors")),
        "--allocation",
        "uniform",
    ]
    plan_time, plan_peak = _run([*base, "plan", str(model), "--kv-ratio", "0.5", *how, "-q", "-o", str(plan)])
    times: list[tuple[float, float]] = []
    peak = 0
    for _ in range(options.runs):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(copy, ignore_errors=True)
        seconds, resident = _run([*base, "convert", str(model), "--plan", str(plan), "-q", "-o", str(out)])
        copied, _ = _run(["cp", "-r", str(model), str(copy)])
        os.sync()
        times.append((seconds, copied))
        peak = max(peak, resident)
    ratios = sorted(a / b for a, b in times)
    print(f"checkpoint: {size / 1e9:.2f} GB of bfloat16, 20 layers, 32 query and 8 KV heads, width 2048")
    print(f"plan, fold with statistics: {plan_time:.1f} s, peak resident memory {plan_peak / 2**20:,.0f} MiB")
    print(f"convert: peak resident memory {peak / 2**20:,.0f} MiB (asked: under 1,024)")
    spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"convert / cp of the same bytes, time: median {statistics.median(ratios):.2f} ({spread})")
    helps = sorted(_run([*base, "--help"])[0] for _ in range(9))
    print(
        f"gqakit --help: median {statistics.median(helps):.2f} s, slowest {helps[-1]:.2f} s (asked: under 0.5)"
    )
    print(json.dumps({"convert_peak_mib": peak / 2**20, "ratio_to_cp": statistics.median(ratios)}))
    for path in (out, copy, model):
        shutil.rmtree(path, ignore_errors=True)


def _run(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a command that must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return seconds, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
