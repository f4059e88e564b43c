"""What distillation brings back of a converted SmolLM2-135M-Instruct, for a stated number of steps.

    gqakit convert MODEL --kv-ratio 0.5 --kv-maps separate --text valid.txt -o benchmarks/out/half
    python benchmarks/uptrain_smollm2.py benchmarks/out/half [--steps 200]

Trains on WikiText-2 valid, on gqakit's calibration text and on the beginning of the Brown corpus; scores on the first 8
windows of 512 tokens of WikiText-2 test and on gqakit's evaluation text, neither trained on nor looked at while training.
Interrupted, the same command goes on; a finished run is scored again without training.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from brown import brown
from common import Table, arguments, environment
from gqakit.cli.console import Screen
from gqakit.data.text import Text, read_text
from gqakit.evaluation.language import LanguageScores, score_language
from gqakit.models.load import load
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.uptrain import uptrain
from workbench import Workbench

CHARACTERS_A_TOKEN = 4


def main() -> None:
    """Train and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("start", type=Path, help="a converted SmolLM2")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps")
    parser.add_argument("--windows", type=int, default=4, help="windows of 512 tokens a step")
    parser.add_argument("--brown-tokens", type=int, default=160_000, help="tokens of Brown, about")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--train", default="attention", help="all, attention or lora")
    parser.add_argument(
        "--ce", type=float, default=0.0, help="weight of the cross-entropy beside the divergence"
    )
    parser.add_argument("--tokens", type=int, default=0, help="most tokens of text, to try things; 0 for all")
    chosen = parser.parse_args()
    bench = Workbench.on_smollm2(chosen.wikitext, chosen.work)
    print(environment(), flush=True)
    out = chosen.work / f"uptrained-{chosen.start.name}"
    options = UptrainOptions(
        ce=chosen.ce,
        kl=1.0,
        train=chosen.train,
        learning_rate=chosen.learning_rate,
        warmup_steps=max(1, chosen.steps // 20),
        max_steps=chosen.steps,
        gradient_accumulation_steps=chosen.windows,
        teacher=str(bench.source.path),
        text=training_text(chosen.wikitext, chosen.brown_tokens),
        tokens=chosen.tokens,
        eval_steps=max(1, chosen.steps // 5),
        save_steps=max(1, chosen.steps // 20),
    )
    started = time.monotonic()
    if not (out / "config.json").is_file():
        screen = Screen()
        uptrain(
            chosen.start,
            out,
            options=options,
            progress=screen.progress,
            notice=lambda step, scores: screen.remark(f"step {step}: {json.dumps(scores)}"),
        )
    record = json.loads((out / "gqakit-uptrain.json").read_text())
    result = record["result"]
    print(f"{result['step']} steps, {result['tokens']:,} tokens, best after step {result['best_step']}")
    print(f"{result['seconds']:,.0f} s in steps, {time.monotonic() - started:,.0f} s here")
    print(f"text: {record['text']}")
    print(f"options: {record['options']}")
    report(bench, {"start": chosen.start, "uptrained": out})


def training_text(wikitext: Path, brown_tokens: int) -> Text:
    """Everything that may be trained on; never WikiText-2 test."""
    valid = wikitext / "valid.txt"
    text = read_text([*([valid] if valid.is_file() else []), "calibration"])
    other = brown()[: brown_tokens * CHARACTERS_A_TOKEN]
    return Text(f"{text.name} + Brown corpus", f"{text.content}\n\n{other}")


def report(bench: Workbench, checkpoints: dict[str, Path]) -> None:
    """Scores of the original and of checkpoints."""
    texts = {
        "WikiText-2 test, 8 × 512": bench.windows("test", 8, 512),
        "gqakit evaluation text": _held_out(bench),
    }
    for name, windows in texts.items():
        table = Table(name, "", "perplexity", "× original", "KL", "same top token")
        original = score_language(bench.reference, windows)
        table.row("original", f"{original.perplexity:.2f}", "1", "", "")
        for label, path in checkpoints.items():
            model: Any = load(path, dtype=torch.float32)
            table.row(label, *_cells(score_language(model, windows, bench.reference), original))


def _held_out(bench: Workbench) -> torch.Tensor:
    return bench.windows("evaluation", 8, 512)


def _cells(scores: LanguageScores, original: LanguageScores) -> tuple[str, ...]:
    ratio = scores.perplexity / original.perplexity
    return f"{scores.perplexity:.2f}", f"{ratio:.3f}", f"{scores.kl:.4f}", f"{scores.top1:.1%}"


if __name__ == "__main__":
    main()
