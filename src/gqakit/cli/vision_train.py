"""`gqakit vision-train`."""

from __future__ import annotations

from collections.abc import Mapping

from gqakit.cli.command import Model, Output, command
from gqakit.cli.console import Screen
from gqakit.key_driven.options import VisionOptions


@command(
    VisionOptions,
    examples=(
        "vision-train VIT --images train.npz -o grouped",
        "vision-train VIT --images train.npz -o grouped --method dgqa-ema --kv-heads 4",
    ),
    resumes="the same command continues where it was saved",
)
def vision_train(screen: Screen, model: Model, output: Output, options: VisionOptions) -> None:
    """Convert a ViT or DINOv2, train it towards its source's features, then on classes, and evaluate it.

    With a key-driven method, query heads are shared out over KV heads by the norms of their keys while it trains; what is
    written is an ordinary grouped checkpoint. Interrupted, the same command continues where it was saved.
    """
    from gqakit.evaluation.measures import number
    from gqakit.key_driven.train import vision_train

    def notice(phase: str, step: int, scores: Mapping[str, float]) -> None:
        said = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
        screen.remark(f"{phase}, step {step:,}, held out: {said}")

    result = vision_train(model, output, options=options, progress=screen.progress, notice=notice)
    if screen.as_json:
        screen.json(result)
        return
    rows = [("accuracy", f"{result.accuracy:.1%}"), ("cross-entropy", number(result.loss))]
    if result.in_training["accuracy"] != result.accuracy:
        rows.append(("accuracy as in training", f"{result.in_training['accuracy']:.1%}"))
    if result.features:
        rows.append(("distance from the source's features", " → ".join(map(number, result.features))))
    screen.table(
        f"{result.method}: {result.held_out_images:,} images not trained on; {output}", ("", ""), rows
    )
    layers = [(str(layer), " ".join(map(str, each))) for layer, each in enumerate(result.allocation)]
    screen.table("Query heads that read each KV head", ("layer", "query heads"), layers)
