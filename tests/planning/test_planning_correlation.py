"""Rank correlation against scipy, and what it is among samples of like kind."""

import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from gqakit.errors import UsageError
from gqakit.planning.correlation.options import CorrelateOptions
from gqakit.planning.correlation.ranks import picked_loss, rank_correlation, stratified_correlation


@pytest.mark.parametrize("seed", range(4))
def test_it_is_spearman_s_and_the_interval_holds_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    found = rank_correlation(x.tolist(), y.tolist(), seed)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert -1 <= found.low < found.rho < found.high <= 1
    assert found == rank_correlation(x.tolist(), y.tolist(), seed)


def test_strata_are_looked_at_one_by_one() -> None:
    scores = [
        1,
        2,
        3,
        11,
        12,
        13,
        5,
        6,
    ]  # the strata lie far apart, and inside them the order is turned round
    losses = [3, 2, 1, 13, 12, 11, 0, 9]
    strata = ["a", "a", "a", "b", "b", "b", "c", "c"]
    assert rank_correlation(scores[:6], losses[:6], 0).rho > 0.5
    found = stratified_correlation(scores, losses, strata, 0)
    assert (found.rho, found.samples) == (-1.0, 2)  # two samples rank nothing


def test_nothing_to_rank_is_no_correlation() -> None:
    assert math.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], 0).rho)
    assert stratified_correlation([1, 2], [1, 2], ["a", "b"], 0).samples == 0


def test_what_a_score_picks() -> None:
    losses = [1.0, 4.0, 16.0, 2.0, 2.0, 16.0, 9.0, 9.0]
    strata = ["a"] * 3 + ["b"] * 3 + ["c"] * 2  # two samples are no choice
    found = picked_loss([0, 1, 2, 5, 5, 6, 0, 1], losses, strata, 0)
    assert found.sets == 2
    assert found.ratio == pytest.approx((1 / 4 * 2 / 4) ** 0.5)  # the geometric mean of each set is 4
    assert found.low == pytest.approx(1 / 4)
    assert found.high == pytest.approx(1 / 2)
    worst = picked_loss([2, 1, 0, 2, 2, 1, 0, 0], losses, strata, 0)
    assert worst.ratio == pytest.approx(4)
    tied = picked_loss([7.0] * 8, losses, strata, 0)
    assert tied.ratio == pytest.approx(1)  # a score that says nothing picks the average
    assert picked_loss([1, 2], [1, 2], ["a", "b"], 0).sets == 0
    alone = picked_loss([0, 1, 2], losses[:3], ["a"] * 3, 0)  # one set: nothing to resample
    assert (alone.low, alone.high, alone.sets) == (alone.ratio, alone.ratio, 1)


def test_options_say_what_they_are_and_are_checked() -> None:
    for field in fields(CorrelateOptions):
        assert field.metadata["panel"]
        assert field.metadata["help"].endswith(".")
    merge = next(field for field in fields(CorrelateOptions) if field.name == "merge")
    assert "fold" in merge.metadata["choices"]
    with pytest.raises(UsageError, match="unknown value of `merge` 'foldd'"):
        CorrelateOptions(statistics=Path("m"), merge="foldd")
    for name, value in (("layers", 0), ("random_groupings", -1)):
        with pytest.raises(UsageError, match=f"`{name}` is {value}, expected a number at least"):
            CorrelateOptions(statistics=Path("m"), **{name: value})
    script = (
        "import sys; import gqakit.planning.correlation.options; "
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
