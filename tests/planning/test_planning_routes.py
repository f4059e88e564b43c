"""One pipeline: a conversion opens, resolves and reads once, and a budget gives the same plan by every route."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from command import gqakit as command_line
from command import succeeds
from tiny_models import build

import gqakit
from gqakit.checkpoint import Checkpoint
from gqakit.planning import layer_features, request
from gqakit.planning.plan import Plan

LAYERS = 4
SMALL: dict[str, Any] = {"tokens": 256, "window": 32, "measure_tokens": 64}
FLAGS = tuple(part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", value))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with 4 KV heads per layer and a tokenizer."""
    return build(tmp_path_factory.mktemp("routes") / "llama", kv_heads=4)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a run opens a checkpoint, resolves a budget, makes statistics and loads attention tensors."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, label: Callable[..., str | None]) -> None:
        real = getattr(owner, name)
        inner = real.__func__ if isinstance(real, type(Checkpoint.open)) else real

        def call(*args: Any, **given: Any) -> Any:
            if (what := label(*args, **given)) is not None:
                counts[what] += 1
            return inner(*args, **given)

        bound = owner is Checkpoint and name == "open"
        monkeypatch.setattr(owner, name, classmethod(call) if bound else call)

    count(Checkpoint, "open", lambda cls, path, *rest: f"open {Path(path).name}")
    count(Checkpoint, "load", lambda self, name: name if "k_proj" in name else None)
    count(request, "resolve_budget", lambda *args, **given: "resolve")
    count(layer_features, "key_stats", lambda *args, **given: "key statistics")
    count(layer_features, "value_stats", lambda *args, **given: "value statistics")
    return counts


@pytest.mark.parametrize("maps", ["shared", "separate"])
def test_a_conversion_opens_resolves_and_reads_once(source: Path, counted: Counter[str], maps: str) -> None:
    made = gqakit.convert(source, "out", kv_ratio=0.5, kv_maps=maps, progress=False, evaluate=False, **SMALL)
    assert made.plan.layer_loss == "corrected"
    assert counted["open llama"] == 1
    assert counted["resolve"] == 1
    merged = [index for index, grouping in enumerate(made.plan.groupings) if not grouping.is_identity]
    assert merged
    for layer in range(LAYERS):
        reads = counted[f"model.layers.{layer}.self_attn.k_proj.weight"]
        assert reads == 1 + (layer in merged), f"layer {layer}: once for the plan, once where it is converted"
    for side in ("key", "value"):
        assert counted[f"{side} statistics"] == LAYERS + len(merged)


@pytest.mark.parametrize("maps", ["shared", "separate"])
def test_predicted_losses_and_stated_errors_come_of_one_reading(
    source: Path, counted: Counter[str], maps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where memory has room for one layer only, and with the plan that it makes where all layers stay."""
    statistics = gqakit.calibrate(source, "s.safetensors", tokens=256, window=32, progress=False).path
    how = {"kv_maps": maps, "layer_loss": "predicted", "statistics": statistics, "progress": False}
    kept = gqakit.plan(source, kv_ratio=0.5, **how)
    counted.clear()
    monkeypatch.setattr(layer_features, "KEPT_BYTES", 0)
    assert gqakit.plan(source, kv_ratio=0.5, **how) == kept
    assert len({grouping.key.num_groups for grouping in kept.groupings}) > 1, "losses were weighed"
    assert {n for name, n in counted.items() if "k_proj" in name} == {1}
    assert counted["key statistics"] == counted["value statistics"] == LAYERS


def test_a_conversion_with_statistics_of_a_method_without_losses_reads_once_too(
    source: Path, counted: Counter[str]
) -> None:
    statistics = gqakit.calibrate(source, "s.safetensors", tokens=256, window=32, progress=False).path
    counted.clear()
    how = {"kv_heads": 2, "method": "neighbour", "statistics": statistics, "allocation": "uniform"}
    gqakit.convert(source, "out", progress=False, **how)
    assert (counted["open llama"], counted["resolve"]) == (1, 1)
    assert {n for name, n in counted.items() if "k_proj" in name} == {2}
    assert counted["key statistics"] == counted["value statistics"] == 2 * LAYERS


def test_the_same_budget_gives_the_same_plan_by_every_route(source: Path) -> None:
    """Measured losses come from the same data, so `plan` comes to what `convert` came to."""
    succeeds("convert", source, "-o", "one", "--kv-ratio", 0.5, *FLAGS, "--no-evaluate")
    statistics = Path("one.statistics.safetensors")
    rest = [
        part for name in ("window", "measure_tokens") for part in (f"--{name.replace('_', '-')}", SMALL[name])
    ]
    succeeds("plan", source, "--kv-ratio", 0.5, "--statistics", statistics, *rest, "-o", "two.json")
    measure = {"window": 32, "measure_tokens": 64}
    by_call = gqakit.plan(source, kv_ratio=0.5, statistics=statistics, progress=False, **measure)
    four = gqakit.convert(
        source, "four", kv_ratio=0.5, progress=False, evaluate=False, statistics=statistics, **measure
    )
    by_command = Plan.load(Path("one/gqakit-plan.json"))
    assert by_command.budget.kv_ratio == 0.5
    assert by_command == Plan.load(Path("two.json")) == by_call == four.plan
    assert by_command.to_json() == by_call.to_json()


def test_a_plan_is_saved_and_printed_before_it_is_drawn(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib the plan and its fronts are there."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    how = ("--kv-ratio", 0.5, "--method", "neighbour", "-o", "plan.json", "--pareto", "front.json")
    ran = command_line("plan", source, *how, "--plot", "front.png")
    assert ran.code == 10
    assert "gqakit[plot]" in ran.err
    assert "bytes per token" in ran.out
    assert Plan.load(Path("plan.json")).budget.kv_ratio <= 0.5
    assert Path("front.json").stat().st_size > 0
    assert not Path("front.png").exists()


def test_results_read_well_in_a_notebook(source: Path) -> None:
    """One short line each, with what a person wants to know."""
    statistics = gqakit.calibrate(source, "s.safetensors", tokens=256, window=32, progress=False)
    made = gqakit.convert(
        source,
        "out",
        kv_heads=2,
        method="neighbour",
        statistics=statistics.path,
        progress=False,
        evaluate=True,
    )
    results = {
        "calibrate": statistics,
        "plan": made.plan,
        "convert": made,
        "evaluate": made.evaluation[1],
        "inspect": gqakit.inspect(source),
        "verify": gqakit.verify(source, "out", window=32, progress=False),
    }
    for name, result in results.items():
        text = repr(result)
        assert len(text) <= 250, f"{name}: {text}"
        assert "\n" not in text
    assert "512 → 256 bytes" in repr(made)
    assert "passed" in repr(results["verify"])


def test_a_plot_marks_the_plan_whatever_types_its_cache_has(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[tuple[float, float]] = []
    plot = Axes.plot

    def watched(self: Axes, *args: Any, **how: Any) -> Any:
        if how.get("label") == "this plan":
            marked.append(args[:2])
        return plot(self, *args, **how)

    monkeypatch.setattr(Axes, "plot", watched)
    how = (
        "--kv-ratio",
        "0.2",
        "--kv-cache",
        "int4/4",
        "--layer-loss",
        "error",
        "--plot",
        tmp_path / "front.png",
    )
    ran = command_line("plan", source, *how, "-o", tmp_path / "plan.json")
    assert ran.code == 0, ran.err
    kept = Plan.load(tmp_path / "plan.json").groupings
    whole = sum(len(each.key.labels) for each in kept)
    assert [x for x, _ in marked] == [sum(each.key.num_groups for each in kept) / whole]
