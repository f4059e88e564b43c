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


@dataclass(frozen=True)
class Picked:
    """Loss of what a score would pick, over the average, with its 95 % interval, from so many sets; below 1 it helps."""

    ratio: float
    low: float
    high: float
    sets: int


def rank_correlation(scores: Sequence[float], losses: Sequence[float], seed: int) -> Correlation:
    """Over all samples. The interval is the percentile bootstrap's."""
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    return Correlation(*_bootstrapped(lambda index: _spearman(x[index], y[index]), len(x), seed))


def stratified_correlation(
    scores: Sequence[float], losses: Sequence[float], strata: Sequence[Hashable], seed: int
) -> Correlation:
    """The mean of the rank correlations inside each stratum: does the score tell groupings of like kind apart?

    Strata of fewer than three samples, or in which a rank does not differ, say nothing and are left out. The bootstrap
    resamples strata.
    """
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    inside = np.array([_spearman(x[i], y[i]) for i in _members(strata) if len(i) > 2])
    inside = inside[np.isfinite(inside)]
    if not len(inside):
        return Correlation(np.nan, np.nan, np.nan, 0)
    return Correlation(*_bootstrapped(lambda index: float(inside[index].mean()), len(inside), seed))


def picked_loss(
    scores: Sequence[float], losses: Sequence[float], strata: Sequence[Hashable], seed: int
) -> Picked:
    """What the sample of the lowest score loses, against the average sample of its stratum.

    Both averages are geometric, as losses of different strata differ by orders of magnitude; samples of equal score share
    the pick. Strata of fewer than three samples are left out, samples that lose nothing too. The bootstrap resamples strata.
    """
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    kept = [[i for i in stratum if y[i] > 0] for stratum in _members(strata)]
    logs = np.array(
        [np.log(y[i][x[i] == x[i].min()]).mean() - np.log(y[i]).mean() for i in kept if len(i) > 2]
    )
    if not len(logs):
        return Picked(np.nan, np.nan, np.nan, 0)
    return Picked(*_bootstrapped(lambda index: float(np.exp(logs[index].mean())), len(logs), seed))


def _members(strata: Sequence[Hashable]) -> list[list[int]]:
    """The indices of each stratum's samples."""
    members: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    return list(members.values())


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    a, b = rankdata(x), rankdata(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(np.corrcoef(a, b)[0, 1])


def _bootstrapped(
    statistic: Callable[[NDArray[np.int64]], float], count: int, seed: int
) -> tuple[float, float, float, int]:
    """A statistic with its interval, and from how many."""
    everything = np.arange(count)
    dice = np.random.default_rng(seed)
    drawn = np.array([statistic(dice.integers(0, count, count)) for _ in range(RESAMPLES)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (np.nan, np.nan)
    return statistic(everything), float(low), float(high), count
