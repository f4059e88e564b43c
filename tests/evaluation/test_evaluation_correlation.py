"""Rank correlation against scipy, and what it is among samples of like kind."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from gqakit.evaluation.correlation import rank_correlation, stratified_correlation


@pytest.mark.parametrize("seed", range(4))
def test_it_is_spearman_s_and_the_interval_holds_it(seed: int) -> None:
    dice = np.random.default_rng(seed)
    x = dice.normal(size=40)
    y = x + dice.normal(size=40)
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
