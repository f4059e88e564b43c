"""What scores measure: what tables and pages call it, how they write it, and which direction is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gqakit.evaluation.agreement import AgreementScores, HeadScores
from gqakit.evaluation.language import LanguageScores


@dataclass(frozen=True)
class Measure:
    """One way to look at quality.

    Attributes:
        name: the field of the scores. title: for a column. label: for an axis. lower: whether less of it is better.
        form: how a value is written, as in a format string; "" for four digits, and whole numbers from 1,000 on.
        log: whether a logarithmic axis suits it.
    """

    name: str
    title: str
    label: str
    lower: bool
    form: str = ".4f"
    log: bool = False

    def shown(self, value: float | None, missing: str = "-") -> str:
        """A value as text."""
        if value is None:
            return missing
        return format(value, self.form) if self.form else number(value)


_KL = Measure("kl", "KL to source", "KL divergence from the source, nats (lower is better)", lower=True)
MEASURES: dict[type, tuple[Measure, ...]] = {
    LanguageScores: (
        Measure("perplexity", "perplexity", "perplexity (lower is better)", lower=True, form="", log=True),
        _KL,
        Measure(
            "top1",
            "same top token",
            "same top token as the source (higher is better)",
            lower=False,
            form=".1%",
        ),
    ),
    AgreementScores: (
        Measure(
            "cosine", "cosine to source", "cosine to the source's embedding (higher is better)", lower=False
        ),
        Measure("error", "relative error", "relative error of the states (lower is better)", lower=True),
        Measure(
            "neighbours",
            "same neighbours",
            "same nearest neighbours (higher is better)",
            lower=False,
            form=".1%",
        ),
    ),
    HeadScores: (
        _KL,
        Measure("error", "relative error", "relative error of the outputs (lower is better)", lower=True),
        Measure(
            "top1", "same choice", "same choice as the source (higher is better)", lower=False, form=".1%"
        ),
    ),
}
"""The measures of each kind of scores, the one that matters most first."""


_ON = " on "
_LOW = ("perplexity", "bits_per_byte")
"""Parts of the names of lm-eval's metrics of which less is better."""


def on_task(task: str, metric: str) -> str:
    """What a score on a task is called."""
    return f"{metric}{_ON}{task}"


def measures_named(scores: Mapping[str, float | None]) -> tuple[Measure, ...]:
    """The measures that such scores have, those of tasks last."""
    tasks = tuple(_of_task(name) for name in scores if _ON in name)
    for measures in MEASURES.values():
        if all(each.name in scores for each in measures):
            return tuple(each for each in (*measures, *tasks) if scores[each.name] is not None)
    raise ValueError(f"scores of no known kind: {sorted(scores)}")


def _of_task(name: str) -> Measure:
    metric = name.partition(_ON)[0]
    lower = any(part in metric for part in _LOW)
    better = "lower" if lower else "higher"
    share = metric.startswith("acc")
    return Measure(name, name, f"{name} ({better} is better)", lower, form=".1%" if share else "")


def number(value: float) -> str:
    """A score in a readable number of digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
