"""The model card of a checkpoint that `vision-train` made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqakit.evaluation.table import number


def vision_card(record: Mapping[str, Any]) -> str:
    """The card.

    Args:
        record: the content of `gqakit-vision.json`.
    """
    options, images, result = record["options"], record["images"], record["result"]
    published = ", as published" if options["as_published"] else ""
    phases = ", ".join(f"{name} {each['step']:,} steps" for name, each in record["phases"].items())
    rows = [
        f"| {layer} | {' '.join(map(str, counts))} |" for layer, counts in enumerate(record["allocation"])
    ]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-classification",
        "tags:",
        "- gqakit",
        "---",
        "",
        f"# {record['model']['name']}, grouped-query attention, {len(images['classes'])} classes",
        "",
        f"Made of **{record['model']['name']}** by gqakit {record['gqakit_version']} (`vision-train`), method "
        f"`{options['method']}`{published}.",
        "",
        f"- Trained on {images['train']:,} images of {images['name']}: {phases}, {options['batch_size']} images a step, "
        f"seed {options['seed']}",
        f"- On {images['held_out']:,} images not trained on: accuracy {result['accuracy']:.1%}, cross-entropy "
        f"{number(result['loss'])}",
        "- Everything else: `gqakit-vision.json`, `gqakit-vision-metrics.jsonl`",
        "",
        "Query heads that read each KV head:",
        "",
        "| layer | query heads |",
        "|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"
