"""What the page says of conversions: their groups, similarities of the source's heads, bytes per engine, settings."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from gqakit import __version__
from gqakit.calibration.store import StatisticsFile
from gqakit.core.cache_types import cache_pair
from gqakit.core.similarity import aligned_similarity
from gqakit.errors import UsageError
from gqakit.evaluation.measures import measures_named
from gqakit.evaluation.page.content import (
    EngineBytes,
    LayerGroups,
    Page,
    Point,
    Similarity,
    scores_of,
)
from gqakit.evaluation.page.write import write_page
from gqakit.evaluation.table import EvaluationRow
from gqakit.models.engine_caches import FULL, as_engine_has_it
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
    command: Sequence[str | Path],
) -> None:
    """The page of one plan's conversion: the source and what was made of it.

    Args:
        path: the file to write. source: the model. statistics: its calibration; None for weights alone.
        rows: scores, the source's first. plan: that was carried out. scored_on: what, in words.
        command: the words that make the last row's checkpoint again.

    Raises:
        MissingDependencyError: without the `page` extra. OutputError: the file cannot be written.
    """
    layers = layers_of(source.spec, plan)
    points = [
        Point(
            name=row.called, way=ORIGINAL if of_source else row.name, kv_bytes=row.kv_bytes_per_token,
            kv_ratio=row.kv_ratio, scores=scores_of(row), layers=() if of_source else layers, cache=row.kv_cache or "",
        )
        for row, of_source in zip(rows, _of_source(rows), strict=True)
    ]  # fmt: skip
    points[-1] = replace(points[-1], command=shlex.join(map(str, command)))
    made = {"budget": plan.budget.asked, "method": plan.method, "merge rule": plan.merging.rule}
    settings = {**made, "allocation": plan.allocation, "seed": plan.seed, "plan": plan.fingerprint}
    write_page(page_of(source, statistics, points, f"Scored on {scored_on}.", settings), path)


def _of_source(rows: Sequence[EvaluationRow]) -> list[bool]:
    """Which rows are the source's: the first, and the one behind it where that is the same in a cache that rounds."""
    rounded = len(rows) > 1 and rows[1].kv_cache is not None
    return [index == 0 or (index == 1 and rounded) for index in range(len(rows))]


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
        about=_about(spec, points[0].kv_bytes),
        note=note,
        measures=measures_named(points[0].scores),
        source=points[0],
        points=[replace(point, layers=()) if point.cache else point for point in points[1:]],
        similarities=_similarities(source, statistics),
        engines=_engines(spec, points) if spec.is_cached else [],
        prompt=prompt if any(point.text for point in points) else "",
        settings={**{name: str(value) for name, value in settings.items()}, "versions": _versions()},
    )


def _about(spec: ModelSpec, kv_bytes: float) -> list[str]:
    heads = max(spec.key_heads)
    return [
        f"{spec.model_type}, {spec.num_layers} attention layers",
        f"{spec.num_heads} query heads, {heads} KV head{'s' if heads > 1 else ''} of width {spec.head_dim}",
        f"{kv_bytes:,.0f} bytes of keys and values per token",
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
    """What each engine that reserves a cache takes per token, for every row; first what runs most of them."""
    made = []
    for name, tokens in BLOCKS.items():
        taken = {point.name: _bytes_per_token(name, spec, point) for point in points}
        if any(taken.values()):
            made.append(EngineBytes(name, tokens, taken))
    return sorted(made, key=lambda engine: sum(size is None for size in engine.elements.values()))


def _bytes_per_token(engine: str, spec: ModelSpec, point: Point) -> int | None:
    """In the types of its cache, else in 16 bit; None where the engine does not run the checkpoint, or has no such cache.

    Where keys and values are grouped apart, engines other than transformers cache the common refinement of the two maps.
    """
    pair = cache_pair(point.cache or FULL)
    try:
        as_engine_has_it(pair.name, engine, spec.head_dim)
    except UsageError:
        return None
    if not point.layers:
        return round(pair.nbytes(sum(spec.key_heads), sum(spec.value_heads), spec.head_dim))
    separate = any(layer.key != layer.value for layer in point.layers)
    if ENGINES[engine].how(kind_of("grouped", separate), spec.family.model_type) is None:
        return None
    if engine == "transformers":
        keys, values = (sum(len(set(side)) for side in sides) for sides in _sides(point))
    else:
        keys = values = sum(len(set(zip(*both, strict=True))) for both in zip(*_sides(point), strict=True))
    return round(pair.nbytes(keys, values, spec.head_dim))


def _sides(point: Point) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The groups of keys, layer by layer, and those of values."""
    return [layer.key for layer in point.layers], [layer.value for layer in point.layers]


def _versions() -> str:
    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"gqakit {__version__}, {others}, Python {platform.python_version()}, {platform.machine()}"
