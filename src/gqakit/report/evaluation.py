"""Scores of several checkpoints side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gqakit.evaluation.language import LanguageScores


@dataclass(frozen=True)
class EvaluationRow:
    """One checkpoint: what its cache takes, computed and measured, and how well it predicts."""

    name: str
    kv_bytes_per_token: int
    kv_bytes_measured: float
    kv_ratio: float
    scores: LanguageScores

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`."""
        return (
            self.name,
            f"{self.kv_bytes_per_token:,}",
            f"{self.kv_bytes_measured:,.0f}",
            f"{self.kv_ratio:.3f}",
            number(self.scores.perplexity),
            f"{self.scores.kl:.4f}",
            f"{self.scores.top1:.1%}",
        )


HEADER = (
    "checkpoint",
    "KV bytes/token",
    "measured",
    "kv_ratio",
    "perplexity",
    "KL to source",
    "same top token",
)


def number(value: float) -> str:
    """A score in a readable number of digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def markdown_table(rows: Sequence[EvaluationRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        " | ".join(HEADER),
        " | ".join("---" for _ in HEADER),
        *(" | ".join(row.cells()) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)
