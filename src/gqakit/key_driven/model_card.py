"""The model card of a checkpoint that `vision-train` made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqakit.evaluation.measures import number


def vision_card(record: Mapping[str, Any]) -> str:
    """The card.

    Args:
        record: the content of `gqakit-vision.json`.
    """
    options, images, result = record["options"], record["images"], record["result"]
    published = ", as published" if options["as_published"] else ""
    phases = ", ".join(f"{name} {each['step']:,} steps" for name, each in record["phases"].items())
    rows = "\n".join(f"| {i} | {' '.join(map(str, each))} |" for i, each in enumerate(record["allocation"]))
    name = record["model"]["name"]
    return f"""---
library_name: transformers
pipeline_tag: image-classification
tags:
- gqakit
---

# {name}, grouped-query attention, {len(images["classes"])} classes

Made of **{name}** by gqakit {record["gqakit_version"]} (`vision-train`), method `{options["method"]}`{published}.

- Trained on {images["train"]:,} images of {images["name"]}: {phases}, {options["batch_size"]} images per step, \
seed {options["seed"]}
- On {images["held_out"]:,} images not trained on: accuracy {result["accuracy"]:.1%}, cross-entropy {number(result["loss"])}
- Everything else: `gqakit-vision.json`, `gqakit-vision-metrics.jsonl`

Query heads that read each KV head:

| layer | query heads |
|---|---|
{rows}
"""
