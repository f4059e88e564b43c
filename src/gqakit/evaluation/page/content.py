"""What the page shows, as plain data: points, grouped heads, similarities, texts and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from gqakit.evaluation.measures import Measure
from gqakit.evaluation.table import EvaluationRow


@dataclass(frozen=True)
class LayerGroups:
    """Which source heads of a layer share, and what that costs.

    Attributes:
        layer: as messages call it.
        key, value: for each source KV head the number of its group.
        key_error, value_error: of the merge, relative to losing all heads.
    """

    layer: str
    key: tuple[int, ...]
    value: tuple[int, ...]
    key_error: float
    value_error: float


@dataclass(frozen=True)
class Point:
    """One checkpoint on the page.

    Attributes:
        name: of this row. way: what made it; rows of one way in one type of cache are joined by a line.
        kv_bytes: of the cache per token. scores: by measure. command: that makes it again.
        layers: its groups; empty for the source. text: its continuation of the prompt.
        cache: the types that its keys and values are rounded to; "" for none.
    """

    name: str
    way: str
    kv_bytes: float
    kv_ratio: float
    scores: Mapping[str, float | None]
    command: str = ""
    layers: tuple[LayerGroups, ...] = ()
    text: str = ""
    cache: str = ""


@dataclass(frozen=True)
class Similarity:
    """How alike the source KV heads of a layer are, `[heads][heads]`, at most 1, and the tree that follows from it."""

    layer: str
    side: str
    matrix: tuple[tuple[float, ...], ...]
    tree: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    """Brackets of the dendrogram: the places of heads (5, 15, 25, … in the order of `leaves`) and distances."""
    leaves: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: str, side: str, matrix: Tensor) -> Similarity:
        """With the tree of average linkage over `1 - similarity`."""
        rounded = tuple(tuple(round(float(value), 3) for value in row) for row in matrix)
        if len(matrix) < 2:
            return cls(layer, side, rounded)
        distances = (1 - matrix.double()).clamp_min(0).fill_diagonal_(0).numpy()
        tree = dendrogram(linkage(squareform(distances, checks=False), "average"), no_plot=True)
        brackets = tuple(
            (tuple(map(float, x)), tuple(round(float(each), 3) for each in y))
            for x, y in zip(tree["icoord"], tree["dcoord"], strict=True)
        )
        return cls(layer, side, rounded, brackets, tuple(tree["leaves"]))


@dataclass(frozen=True)
class EngineBytes:
    """What an engine's own cache takes per token for each row of the page; None where it does not run it."""

    name: str
    rounds_to: int
    """The engine reserves its cache in blocks of this number of tokens."""
    elements: Mapping[str, int | None]
    """Bytes per token, by the name of the row."""


@dataclass(frozen=True)
class Page:
    """Everything on the page; `source` is the model as it was.

    Attributes:
        title: the heading. about: facts in words. measures: that every point has.
        note: what the scores were measured on. settings: names and values that make the page again.
    """

    title: str
    about: Sequence[str]
    note: str
    measures: Sequence[Measure]
    source: Point
    points: Sequence[Point]
    similarities: Sequence[Similarity] = ()
    engines: Sequence[EngineBytes] = ()
    prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


def scores_of(row: EvaluationRow) -> dict[str, Any]:
    """The scores of a row by measure."""
    return {each.name: getattr(row.scores, each.name) for each in fields(row.scores)}
