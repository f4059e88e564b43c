"""A proven lower bound on what any grouping into a given number of groups costs, whatever the merge rule."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gqakit.core.distances import beyond_window, turn
from gqakit.core.linalg import eigvalsh
from gqakit.core.statistics import HeadStats
from gqakit.core.weighting import roots, weighted_gram

DISTANCES = 3
"""Each takes an eigenvalue problem over all heads; the few that carry most of the weight make most of the bound. Where heads
have channels enough that inner products are in float32, one distance has to do."""


def low_rank_bound(stats: HeadStats, num_groups: int) -> float:
    """No partition into `num_groups` groups has less error, with any merge rule.

    The shared heads of all groups together hold `num_groups · d` numbers, so what query heads get has that rank at most,
    and the best approximation of that rank of the stacked `M_h^{1/2} k_h` leaves the smallest eigenvalues of its Gram
    matrix (Eckart and Young).

    Under rotary embedding that holds at each distance, and the error is an average over distances with the mean
    weights of a group's members, which are no less than the least weight of any head; the bound adds up the
    `DISTANCES` that carry most of that. Where the error averages over all distances alike, nothing is known: 0.
    """
    rank = num_groups * stats.gram.shape[1]
    margin = _ROUNDING if stats.single else 0.0
    return sum((weight * _left_out(spectrum, rank, margin) for weight, spectrum in spectra(stats)), 0.0)


_ROUNDING = 1e-6
"""Share of the largest eigenvalue by which one worked out in float32 may be too large."""


def spectra(stats: HeadStats) -> tuple[tuple[float, Tensor], ...]:
    """The eigenvalues, ascending, that bounds for all numbers of groups are made of, with the weight of each."""
    if not stats.channels.first:
        return ((1.0, stats.spectrum),)
    if stats.distances is None or stats.frequencies is None:
        return ()
    known = stats.__dict__.get("_spectra")
    if known is None:
        known = stats.__dict__["_spectra"] = tuple(_turned(stats, stats.distances, stats.frequencies))
    return known


def _turned(stats: HeadStats, distances: Tensor, frequencies: Tensor) -> Iterator[tuple[float, Tensor]]:
    root, _ = roots(stats.metric)
    least = beyond_window(distances).amin(0)
    count = 1 if stats.single else DISTANCES
    for distance in map(int, least.topk(min(count, len(least))).indices):
        turned = root @ turn(distance, frequencies, stats.channels)  # M_h^{1/2} R, [heads, d, d]
        gram = weighted_gram(stats.gram, turned.to(stats.gram.dtype))
        yield float(least[distance]), eigvalsh((gram + gram.mT) / 2).double()


def _left_out(spectrum: Tensor, rank: int, margin: float) -> float:
    """What the best approximation of this rank leaves: the sum of the smallest eigenvalues."""
    left = spectrum[: max(len(spectrum) - rank, 0)]
    if margin:
        left = (left - margin * spectrum[-1]).clamp_min(0)
    return max(float(left.sum()), 0.0)
