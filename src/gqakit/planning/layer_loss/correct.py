"""Predicted losses, corrected by measuring the few choices that matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gqakit.planning.allocation.base import LayerEntry
from gqakit.planning.candidates import EntryCandidates
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.layer_loss.predict import Prediction

ROUNDS = 8
"""How often, at most, what the allocation chooses is measured and corrects the predictions."""


@dataclass(frozen=True)
class Correction:
    """Predicts all candidates, and measures those that the allocation could choose: what it chooses was measured.

    First the two candidates of each entry are measured that are nearest to what is chosen by the predictions. From then on
    predictions are corrected by what was measured, and taken to be too large by one standard deviation of their logarithmic
    errors where nothing was measured: what is chosen even so and was not measured is measured next. So a candidate is passed
    over only where it would not be chosen even by that low estimate. Ends when all that is chosen was measured, or after
    `ROUNDS` rounds.

    Attributes:
        predict, measure: give losses.
        choose: the numbers of heads that the allocation gives each entry, by what entries lose.
    """

    predict: Prediction
    measure: Measurement
    choose: Callable[[Sequence[LayerEntry]], Sequence[int]]

    def __call__(
        self, candidates: Sequence[EntryCandidates], read: LayerReader
    ) -> Sequence[Mapping[int, float]]:
        """What each candidate of each entry loses.

        Raises:
            PlanError: see `Prediction` and `Measurement`.
        """
        predicted = self.predict(candidates, read)
        measured: list[dict[int, float]] = [{} for _ in candidates]
        losses = predicted
        for turn in range(ROUNDS):
            weighed = [
                replace(each.entry, losses=tuple(loss[n] for n in each.entry.counts))
                for each, loss in zip(candidates, losses, strict=True)
            ]
            nearest = _nearest if turn == 0 else _itself
            chosen = [
                replace(each, by_count={n: each.by_count[n] for n in nearest(each, count) if n not in known})
                for each, count, known in zip(candidates, self.choose(weighed), measured, strict=True)
            ]
            if not any(each.by_count for each in chosen):
                break
            for known, found in zip(measured, self.measure(chosen, read), strict=True):
                known.update(found)
            losses = corrected(predicted, measured, lowered=True)
        return corrected(predicted, measured)


def _nearest(entry: EntryCandidates, chosen: int) -> list[int]:
    """The two numbers of heads nearest to the chosen one that merge something; fewer before more."""
    left = [n for n, candidate in entry.by_count.items() if not candidate.partition.is_identity]
    return sorted(left, key=lambda n: (abs(n - chosen), n))[:2]


def _itself(entry: EntryCandidates, chosen: int) -> list[int]:
    """The chosen number of heads, where it merges something."""
    return [] if entry.by_count[chosen].partition.is_identity else [chosen]


def corrected(
    predicted: Sequence[Mapping[int, float]],
    measured: Sequence[Mapping[int, float]],
    *,
    lowered: bool = False,
) -> list[dict[int, float]]:
    """What was measured, and elsewhere predictions times how much more was measured.

    That factor is the one at the nearest number of heads of the same entry, or the geometric mean of all.

    Args:
        predicted, measured: losses of each entry, by number of heads.
        lowered: divide what was not measured by the geometric standard deviation of these factors.
    """
    ratios = [
        {
            count: math.log(loss / of_entry[count])
            for count, loss in known.items()
            if min(loss, of_entry[count]) > 0
        }
        for of_entry, known in zip(predicted, measured, strict=True)
    ]
    every = [ratio for of_entry in ratios for ratio in of_entry.values()]
    average = sum(every) / max(len(every), 1)
    spread = (
        math.sqrt(sum((ratio - average) ** 2 for ratio in every) / max(len(every), 1)) if lowered else 0.0
    )
    found: list[dict[int, float]] = []
    for of_entry, known, ratio in zip(predicted, measured, ratios, strict=True):
        losses: dict[int, float] = {}
        for count, loss in of_entry.items():
            nearest = min(
                ratio, key=lambda seen, count=count: (abs(math.log(seen / count)), seen), default=None
            )
            factor = math.exp((average if nearest is None else ratio[nearest]) - spread)
            losses[count] = known.get(count, loss * factor)
        found.append(losses)
    return found
