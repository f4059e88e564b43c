"""`gqakit plan`, `plan make`, `plan show`, `plan diff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import gqakit, succeeds
from tiny_fixtures import Models

WAY = ("--method", "neighbour")


def test_make_is_the_default(model: Models) -> None:
    a = succeeds("plan", model(), "--kv-heads", 2, *WAY, "--json").out
    b = succeeds("plan", "make", model(), "--kv-heads", 2, *WAY, "--json").out
    assert a == b
    assert json.loads(a)["budget"]["asked"] == "kv_heads 2"


@pytest.mark.parametrize(
    "budget",
    [
        ("--kv-ratio", 0.25),
        ("--kv-heads", 2),
        ("--kv-bytes-per-token", 256),
        ("--kv-gib", 256 * 1000 * 3 / 2**30, "--context", 1000, "--batch", 3),
    ],
    ids=lambda b: b[0],
)
def test_every_spelling_of_a_budget_means_the_same(model: Models, budget: tuple) -> None:
    plan = json.loads(succeeds("plan", model(), *budget, *WAY, "--json").out)
    assert plan["budget"]["kv_ratio"] == 0.25
    assert plan["budget"]["kv_bytes_per_token"] == 256
    assert plan["budget"]["asked"].startswith(budget[0].removeprefix("--").replace("-", "_"))


def test_the_file_is_what_json_prints_and_show_repeats(model: Models) -> None:
    made = succeeds("plan", model(), "--kv-heads", 2, *WAY, "--json", "-o", "plan.json").out
    assert Path("plan.json").read_text() == made == succeeds("plan", "show", "plan.json", "--json").out
    shown = succeeds("plan", "show", "plan.json").out
    for part in (
        "neighbour",
        "kv_heads 2",
        "1,024 → 256 bytes per token",
        "{0,1,2,3} {4,5,6,7}",
        "weights only",
    ):
        assert part in shown


def test_without_moments_a_remark_says_so_unless_quiet(model: Models) -> None:
    assert "weights alone" in succeeds("plan", model(), "--kv-heads", 2, *WAY).err
    assert succeeds("plan", model(), "--kv-heads", 2, *WAY, "-q").err == ""


def test_diff_ends_with_1_where_plans_differ(model: Models) -> None:
    succeeds("plan", model(), "--kv-heads", 2, *WAY, "-o", "a.json")
    succeeds("plan", model(), "--kv-heads", 2, *WAY, "-o", "b.json")
    succeeds("plan", model(), "--kv-heads", 4, *WAY, "-o", "c.json", "--merge", "mean")
    same = succeeds("plan", "diff", "a.json", "b.json")
    assert same.out == "the plans are the same\n"
    assert json.loads(succeeds("plan", "diff", "a.json", "b.json", "--json").out) == []
    ran = gqakit("plan", "diff", "a.json", "c.json")
    assert (ran.code, ran.err) == (1, "")
    for part in ("budget.kv_ratio", "0.25", "0.5", "merging.rule", '"fold"', '"mean"', "layers.3.key"):
        assert part in ran.out
    ran = gqakit("plan", "diff", "a.json", "c.json", "--json")
    assert ran.code == 1
    assert {"field": "merging.rule", "a": '"fold"', "b": '"mean"'} in json.loads(ran.out)


def test_a_budget_that_is_not_whole_heads_says_what_is_reached(model: Models) -> None:
    plan = json.loads(succeeds("plan", model(), "--kv-ratio", 0.3, *WAY, "--json").out)
    assert (plan["budget"]["kv_ratio_asked"], plan["budget"]["kv_ratio"]) == (0.3, 0.25)


def test_a_large_memory_needs_no_merging(model: Models) -> None:
    ran = succeeds("plan", model(), "--kv-gib", 80, "--context", 1000, "--json")
    assert json.loads(ran.out)["budget"]["kv_ratio"] == 1
