"""What docs/extending.md and docs/methods.md say is so: a new method is one file, the table is the catalogue."""

from __future__ import annotations

import json
import random
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import family_models
import pytest
import torch
from command import succeeds
from tiny_fixtures import Models

from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES
from gqakit.core.merging.base import HeadMerge, MergeRule, identity_maps
from gqakit.core.statistics import HeadStats
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes, in_range
from gqakit.models.families import FAMILIES
from gqakit.models.families.base import Family, Names, Stack, causal, classes
from gqakit.pipeline import convert
from gqakit.planning.catalogue import markdown
from gqakit.planning.make import plan

DOCS = Path(__file__).parents[2] / "docs"


def example(name: str) -> type:
    """The class that a code block of docs/extending.md defines, compiled as a file of its own."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text("utf-8"), flags=re.DOTALL)
    (code,) = [block for block in blocks if f"class {name}(" in block]
    names = {
        "GroupingMethod": GroupingMethod, "HeadMerge": HeadMerge, "HeadStats": HeadStats, "HeadFeatures": HeadFeatures,
        "MergeRule": MergeRule, "Partition": Partition, "Sizes": Sizes, "dataclass": dataclass,
        "identity_maps": identity_maps, "in_range": in_range, "random": random, "torch": torch, "__name__": __name__,
    }  # fmt: skip
    exec(compile(code, "extending.md", "exec"), names)
    return names[name]  # pyright: ignore[reportReturnType]


def test_a_grouping_method_is_one_class(
    model: Models, moments: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    striped = example("Striped")()
    monkeypatch.setitem(METHODS, striped.name, striped)
    source = model()
    convert(source, "out", method="striped", kv_heads=3, statistics=moments(source), progress=False)
    succeeds("verify", source, "out")
    made = json.loads(Path("out/gqakit-plan.json").read_text())
    assert made["layers"][0]["key"] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert made["method_options"] == {"offset": 0}
    monkeypatch.setitem(METHODS, striped.name, example("Striped")(offset=1))
    made = plan(source, kv_heads=2, method="striped", kv_maps="separate", progress=False)
    assert made.method_options == {"offset": 1}
    with pytest.raises(ValueError, match="offset = -1 must be at least 0"):
        example("Striped")(offset=-1)
    assert "striped" in succeeds("methods").out
    assert "| `striped` | every P-th head together |" in succeeds("methods", "--markdown").out


def test_a_merge_rule_is_one_class(model: Models, moments: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    heaviest = example("Heaviest")()
    monkeypatch.setitem(RULES, heaviest.name, heaviest)
    source = model()
    convert(source, "out", merge="heaviest", kv_heads=3, statistics=moments(source), progress=False)
    succeeds("verify", source, "out")


def test_a_family_is_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The family of the page, which gqakit does not have, converted as the matrix converts: duplicates merge exactly."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text("utf-8"), flags=re.DOTALL)
    data, config = (block for block in blocks if "mellum" in block)
    for table in (family_models.CONFIGS, family_models.VARIANTS, FAMILIES):  # left as they were
        monkeypatch.setitem(table, "mellum", None)
    names: dict[str, Any] = {"Family": Family, "classes": classes}
    exec(compile(data, "extending.md", "exec"), names)
    exec(compile(config, "extending.md", "exec"), vars(family_models))
    FAMILIES["mellum"], family_models.VARIANTS["mellum"] = names["MELLUM"], ("mellum", {})
    source = family_models.build_family(tmp_path / "source", "mellum")

    def twins(weights: Any, spec: Any) -> Any:
        heads = torch.arange(weights.num_kv_heads) // 2 * 2
        return replace(weights, key=weights.key.select(heads), value=weights.value.select(heads))

    family_models.edit_layers(source, "mellum", twins)
    made = plan(source, kv_ratio=0.5, method="neighbour", merge="mean", format="grouped", progress=False)
    convert(source, "out", plan=made, progress=False)
    expected = family_models.output_of(source, "mellum")
    near = 1e-4 * float(expected.abs().max())
    assert torch.allclose(family_models.output_of(Path("out"), "mellum"), expected, atol=near)


def test_the_families_that_the_page_shows_are_these() -> None:
    page = (DOCS / "families.md").read_text("utf-8")
    blocks = re.findall(r"(?:^    .*\n)+", page[page.index("## Adding a family") :], flags=re.MULTILINE)
    names: dict[str, Any] = {"Family": Family, "Stack": Stack, "Names": Names, "causal": causal}
    for block in blocks:
        exec(compile(textwrap.dedent(block), "families.md", "exec"), names)
    assert names["QWEN2"] == FAMILIES["qwen2"]
    assert names["GPT_NEOX"] == FAMILIES["gpt_neox"]


def test_the_table_in_the_docs_is_the_catalogue() -> None:
    text = (DOCS / "methods.md").read_text("utf-8")
    begin, end = "<!-- table: made by gqakit methods --markdown -->\n\n", "\n<!-- end of table -->"
    assert text.split(begin)[1].split(end)[0] == markdown(), "run `gqakit methods --markdown` and paste it"
    for name in (*METHODS, "uniform", "knapsack", "qcqa_layers"):
        assert f"\n## `{name}`" in text, f"docs/methods.md does not explain {name}"
