"""Do the scores that methods keep small say anything about what a grouping costs the model?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 1000


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95 % interval, from so many samples; NaN where ranks do not differ."""

    rho: float
    low: float
    high: float
    samples: int


def rank_correlation(scores: Sequence[float], losses: Sequence[float], seed: int) -> Correlation:
    """Over all samples. The interval is the percentile bootstrap's."""
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    return _bootstrapped(lambda index: _spearman(x[index], y[index]), len(x), seed)


def stratified_correlation(
    scores: Sequence[float], losses: Sequence[float], strata: Sequence[Hashable], seed: int
) -> Correlation:
    """The mean of the rank correlations inside each stratum: does the score tell groupings of like kind apart?

    Strata of fewer than three samples, or in which a rank does not differ, say nothing and are left out. The bootstrap
    resamples strata.
    """
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    members: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    inside = np.array([_spearman(x[i], y[i]) for i in members.values() if len(i) > 2])
    inside = inside[np.isfinite(inside)]
    if not len(inside):
        return Correlation(np.nan, np.nan, np.nan, 0)
    return _bootstrapped(lambda index: float(inside[index].mean()), len(inside), seed)


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    a, b = rankdata(x), rankdata(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(np.corrcoef(a, b)[0, 1])


def _bootstrapped(statistic: Callable[[NDArray[np.int64]], float], count: int, seed: int) -> Correlation:
    everything = np.arange(count)
    dice = np.random.default_rng(seed)
    drawn = np.array([statistic(dice.integers(0, count, count)) for _ in range(RESAMPLES)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (np.nan, np.nan)
    return Correlation(statistic(everything), float(low), float(high), count)
