"""QCQA: its error by hand, and its search against the optimum."""

import itertools
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods_layers import normal, random_heads

from gqakit.core.grouping import Partition
from gqakit.core.within_cluster import WithinClusterError
from gqakit.errors import MissingDependencyError, UsageError
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import HeadFeatures, Sizes
from gqakit.grouping_methods.partition_search import exact_partitions
from gqakit.grouping_methods.qcqa.evolution import rng_of
from gqakit.grouping_methods.qcqa.layer_search import layer_front
from gqakit.grouping_methods.qcqa.method import QCQA
from gqakit.grouping_methods.qcqa.rows import Near, canonical, first_rows, num_groups
from gqakit.planning.allocation import ALLOCATIONS
from nsga_sensitivity import model_points

SHORT = QCQA(population=20, generations=10)


def free(num_heads: int) -> dict[int, Sizes]:
    return {n: Sizes(1, num_heads - n + 1) for n in range(1, num_heads + 1)}


def equal(num_heads: int) -> dict[int, Sizes]:
    return {n: Sizes(num_heads // n, num_heads // n) for n in range(1, num_heads + 1) if num_heads % n == 0}


def with_inner(inner: torch.Tensor) -> HeadFeatures:
    return replace(random_heads(len(inner)), num_heads=len(inner), inner=inner)


def clustered(sizes: list[int], seed: int, noise: float = 0.5) -> torch.Tensor:
    """Inner products of heads that lie around as many centers as there are sizes."""
    centers = 3 * normal(len(sizes), 24, seed=seed)
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    points = centers[labels] + noise * normal(len(labels), 24, seed=seed + 1)
    points = points[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return points @ points.T


def test_the_error_of_two_and_three_heads_by_hand():
    heads = torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
    objective = QCQA().objective(with_inner(heads @ heads.T))
    assert objective((0, 1)) == pytest.approx(2)  # mean (2, 0): 1 + 1
    assert objective((1, 2)) == pytest.approx(4.5)  # mean (3, 1.5): 2.25 twice
    assert objective((0, 1, 2)) == pytest.approx(26 / 3)  # mean (7/3, 1): 25/9 + 13/9 + 40/9
    assert [objective((head,)) for head in range(3)] == [0, 0, 0]


def test_keys_and_values_count_with_their_biases():
    layer = random_heads(6)
    parts = [random_heads(6, sides=(side,)) for side in ("key", "value")]
    both, apart = QCQA().objective(layer), [QCQA().objective(part) for part in parts]
    assert both((0, 2, 5)) == pytest.approx(sum(each((0, 2, 5)) for each in apart))


@given(st.lists(st.integers(0, 6), min_size=7, max_size=7), st.permutations(range(7)))
def test_what_groups_are_called_does_not_matter(labels, names):
    spread = WithinClusterError(clustered([4, 2, 1], seed=0))
    renamed = [names[label] for label in labels]
    once, again = spread.of_labels(torch.tensor([labels, renamed])).tolist()
    assert once == again
    assert once == pytest.approx(sum(map(spread, Partition.of(labels).groups)))


@given(st.integers(0, 1000))
def test_heads_that_all_stay_alone_lose_nothing(seed):
    spread = WithinClusterError(clustered([4, 2, 1], seed=seed))
    assert spread.of_labels(torch.arange(7)[None]).tolist() == [0]
    assert spread.of_labels(torch.arange(7).flip(0)[None]).tolist() == [0]


def test_two_generations_of_five_improve_on_the_first_population():
    """The first experiment of the paper. Counted over several layers: one alone may be unlucky."""
    options, gains = QCQA(population=5, generations=2), []
    for seed in range(5):
        inner, counts = clustered([3, 3, 2, 1], seed=seed), {3: Sizes(1, 7), 4: Sizes(1, 6)}
        rows = first_rows(9, counts, options.population, rng_of(f"{seed}/start"))
        errors = WithinClusterError(inner).of_labels(torch.from_numpy(rows)).numpy()
        before = {n: errors[num_groups(rows) == n].min() for n in counts}
        after = {p.size: p.loss for p in layer_front(inner, counts, options, seed=str(seed))}
        gains += [1 - after[n] / before[n] for n in counts]
    assert min(gains) >= 0
    assert sum(gain > 0.01 for gain in gains) >= 5


def test_arbitrary_sizes_beat_equal_ones_where_heads_come_in_unequal_clusters():
    inner = clustered([6, 1, 1], seed=3)
    for count in (2, 4):
        any_size = layer_front(inner, free(8), QCQA(), seed="0")[count - 1]
        blocks = {p.size: p for p in layer_front(inner, equal(8), QCQA(), seed="0")}[count]
        assert any_size.loss < 0.7 * blocks.loss
        assert Partition(blocks.row).is_equal
        assert not Partition(any_size.row).is_equal


@pytest.mark.parametrize("sizes", [[5, 4, 2, 1], [2] * 6, [1] * 12])
@pytest.mark.parametrize("seed", range(2))
def test_within_one_percent_of_the_optimum_on_twelve_heads(sizes, seed):
    inner = clustered(sizes, seed, noise=1.0)
    spread = WithinClusterError(inner)
    for counts in (free(12), equal(12)):
        best = exact_partitions(12, counts, spread)
        for point in layer_front(inner, counts, QCQA(), seed=str(seed)):
            optimum = sum(map(spread, best[point.size].groups))
            assert optimum * (1 - 1e-9) - 1e-9 <= point.loss <= optimum * 1.01 + 1e-9
            assert point.loss == pytest.approx(sum(map(spread, Partition(point.row).groups)), abs=1e-9)


@pytest.mark.parametrize("most", [2, 3, 5])
def test_sizes_are_respected_also_where_they_are_tight(most):
    inner = clustered([5, 3, 2], seed=0)
    counts = {n: sizes for n in range(1, 11) if (sizes := Sizes.of(10, n, most=most))}
    partitions = SHORT.groups(with_inner(inner), counts, seed="0")
    assert set(partitions) == set(counts)
    for count, partition in partitions.items():
        assert partition.num_groups == count
        assert counts[count].hold(partition)


@pytest.mark.parametrize("num_heads", range(1, 6))
def test_few_heads_leave_little_to_search_and_everything_is_found(num_heads):
    inner = clustered([num_heads], seed=1)
    spread = WithinClusterError(inner)
    best = exact_partitions(num_heads, free(num_heads), spread)
    found = QCQA().groups(with_inner(inner), free(num_heads), seed="0")
    for count, partition in found.items():
        assert sum(map(spread, partition.groups)) == pytest.approx(sum(map(spread, best[count].groups)))


def test_a_number_of_groups_gets_the_same_partition_whatever_else_is_asked():
    heads = with_inner(clustered([4, 3, 2, 1], seed=5))
    every = SHORT.groups(heads, free(10), seed="7")
    assert SHORT.groups(heads, {4: Sizes(1, 7)}, seed="7") == {4: every[4]}
    mixed = SHORT.groups(heads, {5: Sizes(2, 2), 4: Sizes(1, 7)}, seed="7")
    assert mixed == {4: every[4], 5: SHORT.groups(heads, {5: Sizes(2, 2)}, seed="7")[5]}


def test_only_the_seed_decides():
    inner, found = clustered([4, 3, 3, 2], seed=2, noise=2), []
    few = replace(SHORT, generations=2)
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        found.append(layer_front(inner, free(12), few, seed="a"))
    assert found[0] == found[1]
    assert layer_front(inner, free(12), few, seed="b") != found[0]


def test_options_are_recorded_and_checked():
    assert METHODS["qcqa"].options() == {
        "population": 100,
        "generations": 100,
        "crossover": 0.9,
        "mutation": None,
    }
    assert METHODS["qcqa"].configured({"mutation": 0.1}).options()["mutation"] == 0.1
    for name, value in [("generations", 0), ("population", 3), ("crossover", 1.5), ("mutation", -0.1)]:
        with pytest.raises(UsageError, match=rf"qcqa: {name} = {value} must be at least"):
            METHODS["qcqa"].configured({name: value})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(wrong):
    inner = clustered([3, 3], seed=0)
    inner[1, 2] = inner[2, 1] = wrong
    with pytest.raises(ValueError, match="not finite"):
        SHORT.groups(with_inner(inner), free(6), seed="0")


def test_one_search_over_the_model_gives_a_front_of_valid_plans():
    """The paper's one-stage variant, which benchmarks/nsga_sensitivity.py compares with two stages."""
    inners = [clustered([4, 2], seed=0), clustered([3, 3, 2], seed=4)]
    counts = [free(6), equal(8)]
    options = QCQA(population=40, generations=30)
    points = model_points(inners, counts, options, seed="0")
    assert points == model_points(inners, counts, options, seed="0")
    best = [exact_partitions(len(i), c, WithinClusterError(i)) for i, c in zip(inners, counts, strict=True)]
    for point in points:
        assert point.size == sum(point.counts)
        least = sum(
            sum(map(WithinClusterError(inner), exact[count].groups))
            for inner, exact, count in zip(inners, best, point.counts, strict=True)
        )
        assert point.loss >= least - 1e-9
    assert (points[0].counts, points[-1].counts, points[-1].loss) == ((1, 1), (6, 8), 0)
    assert points[0].loss == pytest.approx(sum(WithinClusterError(i)(range(len(i))) for i in inners))
    for smaller, larger in itertools.pairwise(points):
        assert smaller.size < larger.size


@given(st.integers(2, 9), st.integers(0, 100))
def test_first_populations_hold_every_number_asked_for(num_heads, seed):
    counts = {n: sizes for n in range(1, num_heads + 1) if (sizes := Sizes.of(num_heads, n, most=4))}
    rows = first_rows(num_heads, counts, 30, rng_of(str(seed)))
    assert (rows == canonical(rows)).all()
    assert set(num_groups(rows).tolist()) == set(counts)
    for row in rows.tolist():
        assert counts[max(row) + 1].hold(Partition(tuple(row)))


def test_pymoo_is_imported_by_a_search_alone_and_prints_nothing():
    script = (
        "import sys; from gqakit.grouping_methods.base import Sizes; "
        "from gqakit.grouping_methods.qcqa.layer_search import layer_front;"
        "from gqakit.grouping_methods.qcqa.method import QCQA; import torch;"
        "assert not any(name.startswith('pymoo') for name in sys.modules);"
        "counts = {n: Sizes(1, 5 - n) for n in range(1, 5)};"
        "layer_front(torch.eye(4).double(), counts, QCQA(generations=2), seed='0');"
        "assert 'pymoo' in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_without_pymoo_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo", None)
    install = r"pip install 'gqakit\[qcqa\]'"
    for registered in (
        METHODS["qcqa"],
        ALLOCATIONS["qcqa_layers"],
    ):  # when options are checked, before any work
        with pytest.raises(MissingDependencyError, match=install):
            registered.configured({})
    with pytest.raises(MissingDependencyError, match=install):
        layer_front(clustered([3, 3], seed=0), free(6), SHORT, seed="0")
    assert METHODS["optimal"].configured({}) == METHODS["optimal"]


def test_a_moved_head_joins_a_mate_or_goes_alone_and_whole_groups_merge():
    rng, near = rng_of("0"), Near.of(clustered([4, 4, 4], 0).numpy())
    before = canonical(np.tile(np.repeat(np.arange(3), 4), (4000, 1)))
    moved = near.move(before, 1 / 12, rng)
    changed = (moved != before).sum(1)
    labels = [set(row.tolist()) for row in moved]
    alone = sum(3 in groups for groups in labels)
    # One head in twelve moves, one in four of them alone: 0.25 per row, so 1 - exp(-0.25) of the rows or a little less.
    assert 0.15 < alone / len(moved) < 0.3
    # And in a tenth of the rows the group of one head goes into that of another, which in a third of them is its own.
    whole = sum(len(groups & {0, 1, 2}) < 3 for groups in labels)
    assert 0.02 < whole / len(moved) < 0.1
    assert 0.2 < (changed == 0).mean() < 0.6


def test_a_swap_keeps_the_sizes_of_groups():
    rng, near = rng_of("0"), Near.of(clustered([4, 4, 4], 0).numpy())
    before = canonical(np.tile(np.repeat(np.arange(3), 4), (1000, 1)))
    after = near.swap(before, 1 / 12, rng)
    assert (np.sort(after, axis=1) == np.sort(before, axis=1)).all()
    assert 0.2 < (after != before).any(1).mean() < 0.8
    taken = (after != before).sum(0)  # which member comes in a mate's place is drawn: none is left out
    assert taken.min() > 0.25 * taken.max()
