"""From finished cells to the page: similarities of the source's heads, bytes per engine, settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from gqakit import __version__
from gqakit.calibration.store import StatisticsFile
from gqakit.comparison.cells import Cell
from gqakit.core.similarity import aligned_similarity
from gqakit.evaluation.page.content import EngineBytes, Page, Similarity, measures_named
from gqakit.models.engines import ENGINES, kind_of
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.layer_features import LayerReader

BLOCKS = {"transformers": 1, "llama.cpp": 256, "vllm": 16}
"""The tokens by which each engine reserves its cache: as it grows, by padded context, by block."""
MOST_NUMBERS = 300_000
"""Of similarities on the page, about 2 MB; of a larger model evenly spaced layers are shown."""


def page_of(
    source: Source,
    statistics: StatisticsFile,
    cells: Sequence[Cell],
    scored_on: str,
    settings: Mapping[str, object],
) -> Page:
    """The page for finished cells, the source's first."""
    spec, points = source.spec, [cell for cell in cells[1:] if cell.scores]
    measures = measures_named(cells[0].scores)
    failed = "".join(f" {cell.name} cannot be made: {cell.why_not}." for cell in cells if cell.why_not)
    return Page(
        title=f"{source.short_name} with a smaller KV cache",
        about=_about(spec),
        note=f"Scored on {scored_on}.{failed}",
        measures=measures,
        source=cells[0].point,
        points=[cell.point for cell in points],
        similarities=_similarities(source, statistics),
        engines=_engines(spec, [cells[0], *points]) if spec.is_cached else [],
        prompt=str(settings["prompt"]) if any(cell.text for cell in cells) else "",
        settings={**{name: str(value) for name, value in settings.items()}, "versions": _versions()},
    )


def _about(spec: ModelSpec) -> list[str]:
    heads = max(spec.key_heads)
    return [
        f"{spec.model_type}, {spec.num_layers} attention layers",
        f"{spec.num_heads} query heads, {heads} KV head{'s' if heads > 1 else ''} of width {spec.head_dim}",
        f"{spec.cache.bytes_per_token:,} bytes of keys and values per token",
    ]


def _similarities(source: Source, statistics: StatisticsFile) -> list[Similarity]:
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


def _engines(spec: ModelSpec, cells: Sequence[Cell]) -> list[EngineBytes]:
    """What each engine that reserves a cache takes per token, for every row."""
    made = []
    for name, tokens in BLOCKS.items():
        taken = {cell.name: _bytes_per_token(name, spec, cell) for cell in cells}
        if any(taken.values()):
            made.append(EngineBytes(name, tokens, taken))
    return made


def _bytes_per_token(engine: str, spec: ModelSpec, cell: Cell) -> int | None:
    """In 16 bit. Where keys and values are grouped apart, other engines cache the common refinement of the two maps."""
    if not cell.layers:
        return 2 * spec.head_dim * (sum(spec.key_heads) + sum(spec.value_heads))
    separate = any(key != value for _, key, value, *_ in cell.layers)
    if ENGINES[engine].how(kind_of("grouped", separate), spec.family.model_type) is None:
        return None
    if engine == "transformers":
        heads = sum(len(set(key)) + len(set(value)) for _, key, value, *_ in cell.layers)
    else:
        heads = sum(2 * len(set(zip(key, value, strict=True))) for _, key, value, *_ in cell.layers)
    return 2 * spec.head_dim * heads


def _versions() -> str:
    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"gqakit {__version__}, {others}, Python {platform.python_version()}, {platform.machine()}"
