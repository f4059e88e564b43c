"""Files beside the weights that a grouped checkpoint cannot share with its source byte for byte.

A source's tokenizer or processor often has no class in its files: transformers finds it by the model type, which a grouped
checkpoint has another of, so it is written in. And what numbers query heads follows them to their new places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gqakit.errors import CheckpointError
from gqakit.models.families.base import Family
from gqakit.models.spec import ModelSpec
from gqakit.planning.plan import Plan

_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def adapted_files(source: Path, config: dict[str, Any], spec: ModelSpec, plan: Plan) -> dict[str, bytes]:
    """Side files that differ from the source's, by name.

    Args:
        source: its directory. config: its `config.json`. spec, plan: what is converted, and how.
    """
    files: dict[str, dict[str, Any]] = {}
    if plan.format == "grouped":
        for name, key, value in _classes(source, config, spec.family):
            files.setdefault(name, _read(source / name) or {})[key] = value
    generation = _read(source / "generation_config.json")
    if generation and generation.get("alignment_heads") and any(site.stack.cross for site in spec.sites):
        heads = _pairs(generation["alignment_heads"], source / "generation_config.json")
        moved = moved_heads(heads, spec, plan)
        if moved != heads:
            files["generation_config.json"] = {**generation, "alignment_heads": moved}
    return {
        name: (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode() for name, data in files.items()
    }


def moved_heads(heads: list[list[int]], spec: ModelSpec, plan: Plan) -> list[list[int]]:
    """Pairs of decoder layer and query head of cross-attention, with the place where the conversion puts each head."""
    orders = {
        site.index: grouping.query_order(heads, fixed=spec.fixed_queries)
        for site, heads, grouping in zip(spec.sites, spec.heads, plan.groupings, strict=True)
        if site.stack.cross
    }
    return [
        [layer, orders[layer].index(head)] if layer in orders and head in orders[layer] else [layer, head]
        for layer, head in heads
    ]


def _pairs(value: Any, path: Path) -> list[list[int]]:
    """The value of `alignment_heads`. Raises CheckpointError unless it is a list of pairs."""
    if isinstance(value, list) and all(isinstance(each, list) and len(each) == 2 for each in value):
        return value
    raise CheckpointError(
        f"{path}: alignment_heads is {str(value)[:80]!r}, expected a list of [layer, head]; correct it or remove it"
    )


def _classes(source: Path, config: dict[str, Any], family: Family) -> Iterator[tuple[str, str, str]]:
    """File, key and class for what transformers finds by the family's model type alone."""
    tokenizer = _read(source / "tokenizer_config.json")
    has_tokenizer = tokenizer is not None or any((source / name).is_file() for name in _TOKENIZERS)
    named = (tokenizer or {}).get("tokenizer_class") or config.get("tokenizer_class")
    if has_tokenizer and not named:
        yield from _named(
            family, "tokenization_auto", "TOKENIZER_MAPPING", "tokenizer_config.json", "tokenizer_class"
        )
    processor = _read(source / "preprocessor_config.json")
    if processor is None:
        return
    at = "preprocessor_config.json"
    if not (processor.get("image_processor_type") or processor.get("feature_extractor_type")):
        yield from _named(
            family, "image_processing_auto", "IMAGE_PROCESSOR_MAPPING", at, "image_processor_type"
        )
        yield from _named(
            family, "feature_extraction_auto", "FEATURE_EXTRACTOR_MAPPING", at, "feature_extractor_type"
        )
    if not (processor.get("processor_class") or (tokenizer or {}).get("processor_class")):
        yield from _named(family, "processing_auto", "PROCESSOR_MAPPING", at, "processor_class")


def _named(family: Family, module: str, mapping: str, file: str, key: str) -> Iterator[tuple[str, str, str]]:
    import importlib

    import transformers

    known = getattr(importlib.import_module(f"transformers.models.auto.{module}"), mapping)
    kind = known.get(getattr(transformers, family.config), None)
    if isinstance(kind, dict | tuple):  # image processors come in several backends
        kinds = [each for each in (kind.values() if isinstance(kind, dict) else kind) if each is not None]
        kind = kinds[0] if kinds else None
    if kind is not None:
        name = kind if isinstance(kind, str) else kind.__name__
        yield file, key, name.removesuffix("Fast").removesuffix("Pil")


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
