"""What the training run costs beyond its models: tokens per second against a plain loop, paired in one process.

    python benchmarks/uptrain_throughput.py START [--steps 3]

The plain loop is the least that could be called distillation: forward of the teacher, forward of the student, the
divergence of their logits in one piece, backward, AdamW. Both take turns over the same windows; the ratio is of medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import kl_div

from common import arguments, environment
from gqakit.models.load import load
from gqakit.models.source import Source
from gqakit.recovery.distil.language import LanguageTask
from gqakit.recovery.distil.options import LossWeights, StepSchedule, UptrainOptions
from gqakit.recovery.distil.store import RunStore
from gqakit.recovery.distil.trainable import prepare_student
from gqakit.recovery.distil.trainer import Training, train
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
    options = UptrainOptions(
        gradient_accumulation_steps=1, max_steps=chosen.steps + 1, window=chosen.window, learning_rate=1e-6
    )
    spec = Source.open(chosen.start).spec
    teacher = load(bench.source.path, dtype=torch.float32)
    print(environment(), f"windows of {chosen.window}", flush=True)
    student = prepare_student(load(chosen.start, dtype=torch.float32), spec, options)
    other: Any = prepare_student(load(chosen.start, dtype=torch.float32), spec, options).train()
    plain_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-6, fused=True)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    mark = time.process_time()

    def plain(step: int) -> None:
        ids = windows[step % len(windows)][None]
        with torch.no_grad():
            theirs = teacher(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        logits = other(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        (kl_div(logits, theirs, reduction="sum", log_target=True) / logits.shape[1]).backward()
        plain_optimizer.step()
        plain_optimizer.zero_grad()

    def after_a_step(items: int) -> None:
        """One step of ours is done, from the end of the plain one before: now a plain one."""
        nonlocal mark
        times["ours"].append(time.process_time() - mark)
        start = time.process_time()
        plain(len(times["plain"]))
        mark = time.process_time()
        times["plain"].append(mark - start)

    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        store.begin({}, restart=True)
        task = LanguageTask(windows, windows[:1], LossWeights(0, 1, 0))
        schedule = StepSchedule(chosen.steps + 1, 10**6, 10**6)
        train(Training(student, teacher, task, options, schedule, store, "cpu", after_a_step))
    rates = {
        name: (chosen.window - 1) / statistics.median(seen[1:]) for name, seen in times.items()
    }  # first: warm-up
    for name, seen in times.items():
        print(
            f"{name}: {rates[name]:.1f} tokens/s; CPU seconds a step: {', '.join(f'{s:.2f}' for s in seen[1:])}"
        )
    print(f"ratio: {rates['ours'] / rates['plain']:.3f}")


if __name__ == "__main__":
    main()
