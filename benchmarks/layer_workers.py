"""Planning and converting the layers of a checkpoint, by default a synthetic one of 2 GB, with one worker and with two.

    python benchmarks/layer_workers.py [--work FOLDER] [--workers 2] [--model MODEL --statistics FILE] [--plan OPTIONS]

Prints wall seconds of `plan` and of `convert`, their ratios, and whether plan and weights are the same bytes. Other work on
the machine shows in the ratios: each is of two runs one after the other.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import Table, environment


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--statistics", type=Path)
    parser.add_argument("--plan", default="--layer-loss error", help="how to plan")
    options = parser.parse_args()
    model = options.model or options.work / "synthetic-2gb"
    if not (model / "config.json").exists():
        maker = __file__.replace("layer_workers", "synthetic_checkpoint")
        subprocess.run([sys.executable, maker, str(model)], check=True)
    statistics = options.statistics or model.with_name("synthetic-statistics.safetensors")
    how = [
        "--statistics",
        str(statistics),
        "--kv-ratio",
        "0.5",
        "--kv-maps",
        "separate",
        *options.plan.split(),
    ]
    made = {count: run(options.work, model, count, how) for count in (1, options.workers)}
    (one, bytes_of_one), (several, bytes_of_several) = made.values()
    print(environment())
    table = Table(f"{model}, {options.plan}", "step", "1 worker, s", f"{options.workers} workers, s", "ratio")
    for step, alone in one.items():
        table.row(step, f"{alone:.1f}", f"{several[step]:.1f}", f"{several[step] / alone:.2f}")
    print(f"\nthe same bytes: {bytes_of_one == bytes_of_several}")


def run(work: Path, model: Path, workers: int, how: list[str]) -> tuple[dict[str, float], list[str]]:
    """Wall seconds of both steps, and hashes of the plan and of every weight file."""
    plan, out = work / f"workers-{workers}.json", work / "workers-out"
    shutil.rmtree(out, ignore_errors=True)
    shared = ["--workers", str(workers), "-q"]
    times = {
        "plan": timed("plan", str(model), *how, *shared, "-o", str(plan)),
        "convert": timed("convert", str(model), "--plan", str(plan), *how[:2], *shared, "-o", str(out)),
    }
    hashes = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (plan, *sorted(out.glob("*.safetensors")))
    ]
    shutil.rmtree(out)
    return times, hashes


def timed(*command: str) -> float:
    """Wall seconds of a command of gqakit that must succeed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gqakit", *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
