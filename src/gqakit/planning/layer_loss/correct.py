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
from gqakit.planning.request import ROUNDS


@dataclass(frozen=True)
class Correction:
    """Predicts all candidates, measures what the allocation then chooses or what is next to it, corrects the others alike.

    So `ROUNDS` candidates of each entry are measured at most.

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
        for _ in range(ROUNDS):
            weighed = [
                replace(each.entry, losses=tuple(loss[n] for n in each.entry.counts))
                for each, loss in zip(candidates, losses, strict=True)
            ]
            chosen = [
                replace(each, by_count={n: each.by_count[n] for n in _next(each, count, known)})
                for each, count, known in zip(candidates, self.choose(weighed), measured, strict=True)
            ]
            for known, found in zip(measured, self.measure(chosen, read), strict=True):
                known.update(found)
            losses = corrected(predicted, measured)
        return losses


def _next(entry: EntryCandidates, chosen: int, known: Mapping[int, float]) -> list[int]:
    """The number of heads nearest to the chosen one that merges something and was not measured; fewer before more."""
    left = [
        n for n, candidate in entry.by_count.items() if n not in known and not candidate.partition.is_identity
    ]
    return [min(left, key=lambda n: (abs(n - chosen), n))] if left else []


def corrected(
    predicted: Sequence[Mapping[int, float]], measured: Sequence[Mapping[int, float]]
) -> list[dict[int, float]]:
    """Predictions times how much more was measured: at the nearest number of heads of the same entry, or on average."""
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
    found: list[dict[int, float]] = []
    for of_entry, known, ratio in zip(predicted, measured, ratios, strict=True):
        losses: dict[int, float] = {}
        for count, loss in of_entry.items():
            nearest = min(
                ratio, key=lambda seen, count=count: (abs(math.log(seen / count)), seen), default=None
            )
            factor = math.exp(average if nearest is None else ratio[nearest])
            losses[count] = known.get(count, loss * factor)
        found.append(losses)
    return found
