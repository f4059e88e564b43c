"""Tables on a terminal of 80 columns: numbers and the words of headings stay whole, and nothing is cut off."""

from __future__ import annotations

import pytest

from gqakit.cli.console import _rich_table

SCORES = (
    ("checkpoint", "KV bytes/token", "measured", "kv_ratio", "perplexity", "KL to source", "same top token"),
    [
        ("SmolLM2-135M-Instruct", "46,080", "46,080", "1.000", "38.62", "0.0000", "100.0%"),
        ("neighbour-mean-1-of-3, q4_0+h", "15,360", "15,360", "0.333", "13,408", "6.0327", "1.9%"),
    ],
)
LONG = (
    ("format", "KV heads per layer", "kv_ratio", "why"),
    [("grouped", "1, 2", "0.333, 0.667", "any groups: transformers, llama.cpp, vllm, onnx; " * 3)],
)


@pytest.mark.parametrize(("header", "rows"), [SCORES, LONG])
def test_nothing_is_cut(header, rows, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _rich_table("A title", header, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join(lines)
    words = [word for name in header for word in name.replace("/", "/ ").split()]
    assert all(word in shown.replace("/", "/ ").split() for word in words)
    assert all(word in shown.split() for row in rows for cell in row for word in cell.split())


def test_headings_stay_in_one_line_where_there_is_room(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    _rich_table("A title", *SCORES)
    _title, heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert all(name in heading for name in SCORES[0])
    assert set(rule.strip()) == {"─"}
    assert len(rows) == 2
