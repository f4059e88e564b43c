"""What the page says of conversions: their groups, similarities of the source's heads, bytes per engine, settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from gqakit import __version__
from gqakit.calibration.store import StatisticsFile
from gqakit.core.similarity import aligned_similarity
from gqakit.evaluation.page.content import (
    EngineBytes,
    LayerGroups,
    Page,
    Point,
    Similarity,
    measures_named,
    scores_of,
)
from gqakit.evaluation.page.write import write_page
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.engines import ENGINES, kind_of
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.plan import Plan

BLOCKS = {"transformers": 1, "llama.cpp": 256, "vllm": 16}
"""The tokens by which each engine reserves its cache: as it grows, by padded context, by block."""
MOST_NUMBERS = 300_000
"""Of similarities on the page, about 2 MB; of a larger model evenly spaced layers are shown."""


ORIGINAL = "original"


def write_report(
    path: Path,
    source: Source,
    statistics: StatisticsFile | None,
    rows: Sequence[EvaluationRow],
    plan: Plan,
    scored_on: str,
) -> None:
    """The page of one plan's conversion: the source and what was made of it.

    Args:
        path: the file to write. source: the model. statistics: its calibration; None for weights alone.
        rows: scores, the source's first. plan: that was carried out. scored_on: what, in words.

    Raises:
        MissingDependencyError: without the `page` extra. OutputError: the file cannot be written.
    """
    layers = layers_of(source.spec, plan)
    points = [
        Point(
            name=row.name, way=row.name, kv_bytes=row.kv_bytes_per_token, kv_ratio=row.kv_ratio,
            scores=scores_of(row), layers=layers if index else (),
        )
        for index, row in enumerate(rows)
    ]  # fmt: skip
    points[0] = replace(points[0], way=ORIGINAL)
    made = {"budget": plan.budget.asked, "method": plan.method, "merge rule": plan.merging.rule}
    settings = {**made, "allocation": plan.allocation, "seed": plan.seed, "plan": plan.fingerprint}
    write_page(page_of(source, statistics, points, f"Scored on {scored_on}.", settings), path)


def layers_of(spec: ModelSpec, plan: Plan) -> tuple[LayerGroups, ...]:
    """The groups of a plan, layer by layer."""
    return tuple(
        LayerGroups(spec.name(index), each.key, each.value, each.key_error, each.value_error)
        for index, each in enumerate(plan.layers)
    )


def page_of(
    source: Source,
    statistics: StatisticsFile | None,
    points: Sequence[Point],
    note: str,
    settings: Mapping[str, object],
    prompt: str = "",
) -> Page:
    """The page for scored checkpoints, the source's first."""
    spec = source.spec
    return Page(
        title=f"{source.short_name} with a smaller KV cache",
        about=_about(spec),
        note=note,
        measures=measures_named(points[0].scores),
        source=points[0],
        points=points[1:],
        similarities=_similarities(source, statistics),
        engines=_engines(spec, points) if spec.is_cached else [],
        prompt=prompt if any(point.text for point in points) else "",
        settings={**{name: str(value) for name, value in settings.items()}, "versions": _versions()},
    )


def _about(spec: ModelSpec) -> list[str]:
    heads = max(spec.key_heads)
    return [
        f"{spec.model_type}, {spec.num_layers} attention layers",
        f"{spec.num_heads} query heads, {heads} KV head{'s' if heads > 1 else ''} of width {spec.head_dim}",
        f"{spec.cache.bytes_per_token:,} bytes of keys and values per token",
    ]


def _similarities(source: Source, statistics: StatisticsFile | None) -> list[Similarity]:
    """How alike the key heads and the value heads of each layer are after the best turn."""
    spec, read = source.spec, LayerReader(source, statistics)
    heads = max(spec.key_heads)
    if heads < 2:
        return []
    step = -(-2 * spec.num_layers * heads**2 // MOST_NUMBERS)
    made = []
    for layer in range(0, spec.num_layers, step):
        features = read(layer)
        for side, stats in (("keys", features.key), ("values", features.value)):
            made.append(Similarity.of(spec.name(layer), side, aligned_similarity(stats)))
    return made


def _engines(spec: ModelSpec, points: Sequence[Point]) -> list[EngineBytes]:
    """What each engine that reserves a cache takes per token, for every row."""
    made = []
    for name, tokens in BLOCKS.items():
        taken = {point.name: _bytes_per_token(name, spec, point) for point in points}
        if any(taken.values()):
            made.append(EngineBytes(name, tokens, taken))
    return made


def _bytes_per_token(engine: str, spec: ModelSpec, point: Point) -> int | None:
    """In 16 bit. Where keys and values are grouped apart, other engines cache the common refinement of the two maps."""
    if not point.layers:
        return 2 * spec.head_dim * (sum(spec.key_heads) + sum(spec.value_heads))
    separate = any(layer.key != layer.value for layer in point.layers)
    if ENGINES[engine].how(kind_of("grouped", separate), spec.family.model_type) is None:
        return None
    if engine == "transformers":
        heads = sum(len(set(layer.key)) + len(set(layer.value)) for layer in point.layers)
    else:
        heads = sum(2 * len(set(zip(layer.key, layer.value, strict=True))) for layer in point.layers)
    return 2 * spec.head_dim * heads


def _versions() -> str:
    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"gqakit {__version__}, {others}, Python {platform.python_version()}, {platform.machine()}"
