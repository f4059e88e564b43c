"""What the training loop costs beyond its models: tokens a second against a plain loop, paired in one process.

    python benchmarks/uptrain_throughput.py START [--steps 3]

The plain loop is the least that could be called distillation: forward of the teacher, forward of the student, the
divergence of their logits in one piece, backward, AdamW. Both take turns over the same windows; the ratio is of medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gqakit.recovery.distil.devices import accelerated, prepare
from gqakit.recovery.distil.loop import Loop, Pace
from gqakit.recovery.distil.state import Progress, Store
from torch.nn.functional import kl_div

from common import arguments, environment
from gqakit.models.inspection import open_model
from gqakit.models.load import load
from gqakit.recovery.distil.language import LanguageTask
from gqakit.recovery.distil.options import LossWeights, UptrainOptions
from gqakit.recovery.distil.trainable import parameter_groups, prepare_student
from workbench import Workbench


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("start", type=Path, help="a converted SmolLM2")
    parser.add_argument("--steps", type=int, default=3, help="steps of each loop")
    parser.add_argument("--window", type=int, default=512)
    chosen = parser.parse_args()
    bench = Workbench.on_smollm2(chosen.wikitext, chosen.work)
    windows = bench.windows("valid", chosen.steps + 2, chosen.window)
    options = UptrainOptions(gradient_accumulation_steps=1, max_steps=1000, window=chosen.window)
    _, spec = open_model(str(chosen.start))
    teacher = load(bench.source.path, dtype=torch.float32)
    print(environment(), f"windows of {chosen.window}", flush=True)
    with accelerated("cpu", "float32", ()) as accelerator, tempfile.TemporaryDirectory() as folder:
        student = prepare_student(load(chosen.start, dtype=torch.float32), spec, options)
        optimizer = torch.optim.AdamW(parameter_groups(student, 0.0), lr=1e-6)
        prepared = prepare(accelerator, student, teacher, optimizer, ())
        task = LanguageTask(windows, windows[:1], LossWeights(0, 1, 0))
        pace = Pace(1000, 1000, 1000)
        loop = Loop(prepared, task, options, pace, Store(Path(folder)), lambda n: None, lambda s, v: None)
        other: Any = prepare_student(load(chosen.start, dtype=torch.float32), spec, options).train()
        plain_optimizer = torch.optim.AdamW(parameter_groups(other, 0.0), lr=1e-6)
        state = Progress()

        def ours(step: int) -> None:
            nonlocal state
            state = loop._step(state)

        def plain(step: int) -> None:
            ids = windows[step % len(windows)][None]
            with torch.no_grad():
                theirs = teacher(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
            logits = other(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
            (kl_div(logits, theirs, reduction="sum", log_target=True) / logits.shape[1]).backward()
            plain_optimizer.step()
            plain_optimizer.zero_grad()

        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for step in range(chosen.steps + 1):
            for name, run in (
                (("ours", ours), ("plain", plain)) if step % 2 else (("plain", plain), ("ours", ours))
            ):
                times[name].append(_seconds(run, step))
    rates = {
        name: (chosen.window - 1) / statistics.median(seen[1:]) for name, seen in times.items()
    }  # first: warm-up
    for name, seen in times.items():
        print(
            f"{name}: {rates[name]:.1f} tokens/s; CPU seconds a step: {', '.join(f'{s:.2f}' for s in seen[1:])}"
        )
    print(f"ratio: {rates['ours'] / rates['plain']:.3f}")


def _seconds(run: Callable[[int], None], step: int) -> float:
    """Processor time, not the clock's: other work on the machine does not count."""
    started = time.process_time()
    run(step)
    return time.process_time() - started


if __name__ == "__main__":
    main()
