"""A proven lower bound on what any grouping into a given number of groups costs, whatever the merge rule."""

from __future__ import annotations

from torch import Tensor

from gqakit.core.distances import beyond_window, turn
from gqakit.core.linalg import eigvalsh
from gqakit.core.merging.batch import roots, weighted_gram
from gqakit.core.statistics import HeadStats

DISTANCES = 3
"""Each takes an eigenvalue problem over all heads; the few that carry most of the weight make most of the bound."""


def low_rank_bound(stats: HeadStats, num_groups: int) -> float:
    """No partition into `num_groups` groups has less error, with any merge rule.

    The shared heads of all groups together hold `num_groups · d` numbers, so what query heads get has that rank at most,
    and the best approximation of that rank of the stacked `M_h^{1/2} k_h` leaves the smallest eigenvalues of its Gram
    matrix (Eckart and Young).

    Under rotary embedding that holds at each distance, and the error is an average over distances with the mean
    weights of a group's members, which are no less than the least weight of any head; the bound adds up the
    `DISTANCES` that carry most of that. Where the error averages over all distances alike, nothing is known: 0.
    """
    width = stats.gram.shape[1]
    rank = num_groups * width
    if rank >= stats.num_heads * width:
        return 0.0
    root, _ = roots(stats.metric)
    if not stats.channels.first:
        return _left_out(weighted_gram(stats.gram, root), rank)
    if stats.distances is None or stats.frequencies is None:
        return 0.0
    least = beyond_window(stats.distances).amin(0)
    total = 0.0
    for distance in map(int, least.topk(min(DISTANCES, len(least))).indices):
        turned = root @ turn(distance, stats.frequencies, stats.channels)  # M_h^{1/2} R, [heads, d, d]
        total += float(least[distance]) * _left_out(weighted_gram(stats.gram, turned), rank)
    return total


def _left_out(gram: Tensor, rank: int) -> float:
    """What the best approximation of this rank leaves: the sum of the smallest eigenvalues."""
    spectrum = eigvalsh((gram + gram.mT) / 2)
    return max(float(spectrum[: len(spectrum) - rank].sum()), 0.0)
