"""Scores of several checkpoints side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from gqakit.evaluation.agreement import AgreementScores, HeadScores
from gqakit.evaluation.language import LanguageScores
from gqakit.evaluation.measures import MEASURES, number
from gqakit.evaluation.task_scores import TaskScore


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint, and what its cache takes, computed and measured.

    Nothing is measured of keys and values that no cache keeps. `kv_cache`: the types of a cache that rounds; bytes are then
    in these types, and `kv_ratio` is against the source's at 16 bits.
    """

    name: str
    kv_bytes_per_token: int
    kv_bytes_measured: float | None
    kv_ratio: float
    kv_cache: str | None = field(default=None, kw_only=True)

    @property
    def called(self) -> str:
        """Its name, with the types of its cache."""
        return self.name if self.kv_cache is None else f"{self.name}, {self.kv_cache}"


@dataclass(frozen=True)
class TaskRow(CheckpointRow):
    """What it scored on tasks."""

    results: tuple[TaskScore, ...]


@dataclass(frozen=True)
class EvaluationRow(CheckpointRow):
    """How well it predicts or agrees."""

    scores: LanguageScores | AgreementScores | HeadScores

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `header`."""
        measured = "no cache" if self.kv_bytes_measured is None else f"{self.kv_bytes_measured:,.0f}"
        sizes = (self.called, f"{self.kv_bytes_per_token:,}", measured, f"{self.kv_ratio:.3f}")
        measures = MEASURES[type(self.scores)]
        return (*sizes, *(each.shown(getattr(self.scores, each.name), "no choice") for each in measures))

    @property
    def perplexity(self) -> float:
        """Of a model that predicts tokens."""
        assert isinstance(self.scores, LanguageScores)
        return self.scores.perplexity

    @property
    def summary(self) -> str:
        """The score that matters most, in a few words."""
        scores = self.scores
        if isinstance(scores, LanguageScores):
            return f"perplexity {number(scores.perplexity)}"
        if isinstance(scores, HeadScores):
            return f"relative error {scores.error:.4f}" if scores.kl is None else f"KL {scores.kl:.4f}"
        return f"cosine {scores.cosine:.4f}"

    def sample(self, window: int) -> str:
        """What was scored, for a sentence."""
        if isinstance(self.scores, LanguageScores):
            return f"{self.scores.tokens:,} predicted tokens in windows of {window}"
        return f"{self.scores.inputs:,} inputs"


_SIZES = ("checkpoint", "KV bytes/token", "measured", "kv_ratio")


def header(rows: Sequence[EvaluationRow]) -> tuple[str, ...]:
    """The headings over such rows."""
    return (*_SIZES, *(each.title for each in MEASURES[type(rows[0].scores)]))


def task_tables(rows: Sequence[TaskRow]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """For each task a title, headings and lines, one for each metric and checkpoint; those of a metric stand together."""
    for task, results in groupby(rows[0].results, lambda each: each.task):
        first, *others = results
        lines = [
            (row.called, f"{row.kv_ratio:.3f}", *each.cells())
            for wanted in (first, *others)
            for row in rows
            for each in row.results
            if (each.task, each.metric) == (task, wanted.metric)
        ]
        headings = ("checkpoint", "kv_ratio", "metric", "score", "less the source's")
        yield f"{task}, {first.questions:,} questions", headings, lines


def markdown_table(rows: Sequence[EvaluationRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        " | ".join(header(rows)),
        " | ".join("---" for _ in header(rows)),
        *(" | ".join(row.cells()) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)
