"""Grouped checkpoints with the layouts that engines stumble over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build

from gqakit.core.grouping import Grouping, Partition
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.plan import BudgetRecord, LayerPlan, Merging, Plan, PlanSource

Maps = tuple[tuple[int, ...], tuple[int, ...]]

UNEQUAL: tuple[Maps, ...] = tuple(
    (labels, labels)
    for labels in (
        (0, 1, 0, 1, 1, 2, 2, 2, 2),  # three heads, read by 2, 3 and 4 query heads that are not contiguous
        (0, 0, 0, 0, 1, 1, 1, 0, 0),
        (0, 1, 2, 2, 3, 3, 3, 4, 4),
        (0, 0, 0, 0, 0, 0, 0, 0, 0),
    )
)
SAME_COUNT: tuple[Maps, ...] = tuple(
    (labels, labels)
    for labels in (
        (0, 1, 0, 1, 1, 2, 2, 2, 2),
        (0, 0, 0, 1, 1, 1, 2, 2, 2),
        (0, 1, 2, 2, 2, 2, 2, 1, 1),
        (0, 0, 1, 1, 1, 2, 2, 2, 2),
    )
)
APART: tuple[Maps, ...] = (
    ((0, 0, 0, 0, 1, 1, 1, 1, 1), (0, 0, 1, 1, 1, 1, 1, 2, 2)),
    *UNEQUAL[1:],
)
EQUAL_SIZES: tuple[Maps, ...] = tuple(
    (labels, labels)
    for labels in (
        (0, 1, 0, 1, 1, 2, 2, 2, 0),  # groups of three that are not contiguous
        (0, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 1, 2, 3, 4, 5, 6, 7, 8),
        (0, 0, 0, 1, 1, 1, 2, 2, 2),
    )
)
LAYOUTS = {
    "equal_sizes": EQUAL_SIZES,
    "unequal": UNEQUAL,
    "same_count": SAME_COUNT,
    "apart": APART,
    "one": APART[:1],
}
WIDTHS: dict[str, dict[str, Any]] = {family: {"hidden_size": 72} for family in ("llama", "qwen2", "phi3")}


def plan_of(source: Path, layers: tuple[Maps, ...]) -> Plan:
    """A plan with these groups that averages the heads."""
    opened = Source.open(source)
    checkpoint, spec = opened.checkpoint, opened.spec
    groupings = [Grouping(Partition(key), Partition(value)) for key, value in layers]
    kept = sum(g.key.num_groups + g.value.num_groups for g in groupings)
    ratio = kept / (2 * len(layers) * spec.key_heads[0])
    return Plan(
        source=PlanSource(
            name=source.name,
            model_type=spec.model_type,
            fingerprint=checkpoint.fingerprint(),
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.key_heads[0],
            head_dim=spec.head_dim,
        ),
        budget=BudgetRecord(
            asked="by hand",
            kv_ratio_asked=ratio,
            kv_ratio=ratio,
            kv_bytes_per_token_before=spec.cache.bytes_per_token,
            kv_bytes_per_token=max(1, round(spec.cache.bytes_per_token * ratio)),
        ),
        format="grouped",
        method="by hand",
        allocation="by hand",
        merging=Merging(rule="mean", key="mean", value="mean"),
        seed=0,
        moments=None,
        versions={},
        layers=tuple(LayerPlan(key=k, value=v, key_error=0, value_error=0) for k, v in layers),
    )


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A grouped model with nine query heads, built once for each family and layout. Not to be changed."""
    made: dict[Any, Path] = {}

    def get(family: str = "llama", layout: str = "unequal", **options: Any) -> Path:
        key = (family, layout, *sorted(options.items(), key=str))
        if key not in made:
            folder = tmp_path_factory.mktemp("grouped")
            kwargs = {"num_attention_heads": 9, "kv_heads": 9, **WIDTHS.get(family, {}), **options}
            source = build(folder / "source", family, **kwargs)
            convert(str(source), folder / "grouped", plan=plan_of(source, LAYOUTS[layout]), evaluate=False)
            made[key] = folder / "grouped"
        return made[key]

    return get
