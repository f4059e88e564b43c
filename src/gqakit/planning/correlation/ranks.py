"""How well a score ranks groupings by what they lose: rank correlations and the loss of its pick, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, spearmanr

RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95 % interval and the number of samples; NaN where ranks do not differ."""

    rho: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Picked:
    """Loss of what a score would pick, over the average, with its 95 % interval and the number of sets; below 1 it helps."""

    ratio: float
    low: float
    high: float
    sets: int


def rank_correlation(scores: Sequence[float], losses: Sequence[float], seed: int) -> Correlation:
    """Over all samples. The interval is the percentile bootstrap's."""
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    return Correlation(*_with_interval(_spearman, (x, y), seed), len(x))


def stratified_correlation(
    scores: Sequence[float], losses: Sequence[float], strata: Sequence[Hashable], seed: int
) -> Correlation:
    """The mean of the rank correlations inside each stratum: does the score tell groupings of like kind apart?

    Strata of fewer than three samples, or in which a rank does not differ, say nothing and are left out. The bootstrap
    resamples strata.

    Args:
        scores, losses, strata: of each sample.
        seed: of the bootstrap.
    """
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    inside = np.array([_spearman(x[i], y[i]) for i in _members(strata) if len(i) > 2])
    inside = inside[np.isfinite(inside)]
    return Correlation(*_with_interval(np.mean, (inside,), seed), len(inside))


def picked_loss(
    scores: Sequence[float], losses: Sequence[float], strata: Sequence[Hashable], seed: int
) -> Picked:
    """What the sample of the lowest score loses, against the average sample of its stratum.

    Both averages are geometric, as losses of different strata differ by orders of magnitude; samples of equal score share
    the pick. Strata of fewer than three samples are left out, samples that lose nothing too. The bootstrap resamples strata.

    Args:
        scores, losses, strata: of each sample.
        seed: of the bootstrap.
    """
    x, y = np.asarray(scores, float), np.asarray(losses, float)
    kept = [[i for i in stratum if y[i] > 0] for stratum in _members(strata)]
    logs = [np.log(y[i][x[i] == x[i].min()]).mean() - np.log(y[i]).mean() for i in kept if len(i) > 2]
    mean, low, high = np.exp(_with_interval(np.mean, (np.array(logs),), seed)).tolist()
    return Picked(mean, low, high, len(logs))


def _members(strata: Sequence[Hashable]) -> list[list[int]]:
    """The indices of each stratum's samples."""
    members: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    return list(members.values())


def _spearman(x: Floats, y: Floats) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # scipy warns and gives NaN
        return np.nan
    return float(spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _with_interval(
    statistic: Callable[..., float], data: tuple[Floats, ...], seed: int
) -> tuple[float, float, float]:
    """A statistic with its 95 % percentile interval; resamples of which nothing can be said are left out."""
    if not len(data[0]):
        return np.nan, np.nan, np.nan
    value = float(statistic(*data))
    if len(data[0]) == 1 or not np.isfinite(value):
        return value, value, value
    drawn = bootstrap(
        data, statistic, n_resamples=RESAMPLES, vectorized=False, paired=True, method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution  # fmt: skip
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return value, float(low), float(high)
