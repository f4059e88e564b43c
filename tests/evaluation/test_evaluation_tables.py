"""The table that people read, in cells and in Markdown."""

from __future__ import annotations

import math

import pytest

from gqakit.evaluation.language import LanguageScores
from gqakit.evaluation.measures import number
from gqakit.evaluation.table import EvaluationRow, header, markdown_table

ROW = EvaluationRow("fold-2", 30_720, 30_720.0, 2 / 3, LanguageScores(45.5432, 0.19871, 0.7271, 4088))


def test_cells_follow_the_header() -> None:
    assert dict(zip(header([ROW]), ROW.cells(), strict=True)) == {
        "checkpoint": "fold-2",
        "KV bytes/token": "30,720",
        "measured": "30,720",
        "kv_ratio": "0.667",
        "perplexity": "45.54",
        "KL to source": "0.1987",
        "same top token": "72.7%",
    }


@pytest.mark.parametrize(
    ("value", "text"), [(38.61, "38.61"), (449.2, "449.2"), (13408.4, "13,408"), (math.inf, "inf")]
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert number(value) == text


def test_markdown() -> None:
    lines = markdown_table([ROW, ROW]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(header([ROW])) + 1}
    assert lines[0].startswith("| checkpoint | KV bytes/token |")
    assert set(lines[1]) == set("| -")
    assert lines[2] == "| fold-2 | 30,720 | 30,720 | 0.667 | 45.54 | 0.1987 | 72.7% |"
