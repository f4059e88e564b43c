"""Hashes of the groups in the plan and of the weights of five conversions, to show that a change of code changes nothing.

    python benchmarks/same_bytes.py [--case smollm2-shared] …

SmolLM2 (one map for keys and values, and separate maps, both with measured losses), MiniLM, Whisper tiny.en on seeded noise,
and a random GPT-NeoX, whose query, key and value projections are fused. Each step runs as a command of its own, in a fresh
directory with fixed names, so that nothing in a plan depends on where it was made. Run it before and after a change; equal
versions of torch and of the processor are needed for equal bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo import MINILM, SMOLLM2, WHISPER_TINY, fetch


def gpt_neox(work: Path) -> Path:
    """A random GPT-NeoX with the tokenizer of SmolLM2."""
    import torch
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(fetch(SMOLLM2))
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=8,
        intermediate_size=128, max_position_embeddings=512,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    for parameter in model.parameters():  # transformers begins biases at zero, which would hide them
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(work / "neox")
    tokenizer.save_pretrained(work / "neox")
    return work / "neox"


def noise(work: Path) -> list[str]:
    """Options that name three seeded recordings of two seconds."""
    (work / "audio").mkdir()
    for index in range(3):
        samples = np.random.default_rng(index).normal(0, 3000, 32_000).astype("<i2")
        with wave.open(str(work / "audio" / f"{index}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(samples.tobytes())
    return ["--audio", "audio"]


def short_text(work: Path) -> list[str]:
    """Options that keep a calibration short."""
    return ["--tokens", "2048", "--window", "256"]


Case = tuple[Callable[[Path], Path], Callable[[Path], list[str]], list[str]]
CASES: dict[str, Case] = {
    "smollm2-shared": (lambda work: fetch(SMOLLM2), short_text, ["--kv-ratio", "0.5", "--text", "calibration"]),
    "smollm2-separate": (
        lambda work: fetch(SMOLLM2), short_text, ["--kv-heads", "2", "--kv-maps", "separate"],
    ),
    "minilm": (lambda work: fetch(MINILM), short_text, ["--kv-ratio", "0.5", "--kv-maps", "separate"]),
    "whisper-tiny.en": (lambda work: fetch(WHISPER_TINY), noise, ["--kv-ratio", "0.5"]),
    "gpt-neox-fused": (gpt_neox, short_text, ["--kv-ratio", "0.5", "--kv-maps", "separate"]),
}  # fmt: skip


def run(work: Path, *command: str) -> None:
    """One command of gqakit, in the directory `work`."""
    done = subprocess.run(
        [sys.executable, "-m", "gqakit", *command], cwd=work, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"gqakit {' '.join(command)}\n{done.stderr}")


def sha256(*paths: Path) -> str:
    """One hash of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Print one row for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES, help="one or several; all by default")
    for name in parser.parse_args().case or CASES:
        prepare, calibration, planning = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            model = str(prepare(work))
            (work / "model").symlink_to(model)
            run(work, "calibrate", "model", "-o", "statistics.safetensors", *calibration(work))
            run(work, "plan", "model", "--statistics", "statistics.safetensors", "-o", "plan.json", *planning)
            run(work, "convert", "model", "--plan", "plan.json", "-o", "out")
            weights = sha256(*(work / "out").glob("*.safetensors"))
            layers = json.dumps(json.loads((work / "plan.json").read_text())["layers"], sort_keys=True)
            plan = hashlib.sha256(layers.encode()).hexdigest()
            print(f"{name:17s} groups {plan}\n{'':17s} weights {weights}", flush=True)


if __name__ == "__main__":
    main()
