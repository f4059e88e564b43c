"""What a checkpoint scored on tasks of lm-eval, with standard errors, and against the source on the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeGuard

QuestionValues = Mapping[tuple[str, str], Mapping[int, float]]
"""By task and metric, as lm-eval spells it: what each question scored."""


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task, metric: as lm-eval calls them; with its filter where the task has several.
        value: over all questions. stderr: its standard error, where lm-eval knows one.
        questions: how many.
        difference: from the source, where the metric is a mean over questions.
        difference_stderr: of the mean difference over the questions: smaller than that of two separate scores.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    questions: int
    difference: float | None = None
    difference_stderr: float | None = None

    def cells(self) -> tuple[str, str, str]:
        """Metric, score and difference as text."""
        return (
            self.metric,
            _with_error(self.value, self.stderr),
            _with_error(self.difference, self.difference_stderr),
        )


def task_scores(made: Mapping[str, Any], source: QuestionValues) -> tuple[TaskScore, ...]:
    """From what `lm_eval.evaluate` returns with samples, against what the source scored."""
    values, found = values_by_question(made["samples"]), list[TaskScore]()
    for task, results in made["results"].items():
        for key, value in results.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = results.get(f"{metric}_stderr,{filtered}")
            difference, its_error = _difference(values.get((task, key)), source.get((task, key)), value)
            found.append(
                TaskScore(
                    task=task,
                    metric=metric if filtered == "none" else key,
                    value=float(value),
                    stderr=float(error) if _is_number(error) else None,
                    questions=int(results["sample_len"]),
                    difference=difference,
                    difference_stderr=its_error,
                )
            )
    return tuple(found)


def values_by_question(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> QuestionValues:
    """What each question scored, of the metrics that score questions one by one."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for task, questions in samples.items():
        for each in questions:
            for metric in each["metrics"]:
                if _is_number(each[metric]):
                    values = found.setdefault((task, f"{metric},{each['filter']}"), {})
                    values[each["doc_id"]] = float(each[metric])
    return found


def _difference(
    ours: Mapping[int, float] | None, source: Mapping[int, float] | None, value: float
) -> tuple[float | None, float | None]:
    """The mean difference over questions and its standard error; None where `value` is no mean over questions."""
    if not ours or not source or ours.keys() != source.keys():
        return None, None
    if not math.isclose(fmean(ours.values()), value, rel_tol=1e-9, abs_tol=1e-12):
        return None, None
    differences = [ours[question] - source[question] for question in ours]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return fmean(differences), error


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    digits = ".3f" if abs(value) < 100 else ",.0f"
    return f"{value:{digits}}" if error is None else f"{value:{digits}} ± {error:{digits}}"
