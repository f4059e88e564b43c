"""Questions with several answers in a local file of JSON lines, as a task of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gqakit.data.text import read_utf8
from gqakit.errors import DataError

EXPECTED = (
    'a line such as {"question": "…", "choices": {"text": ["…", "…"], "label": ["A", "B"]}, "answerKey": "B"}'
)


def choice_task(path: Path) -> dict[str, Any]:
    """The config of a task, named after the file, that is scored by `acc` and `acc_norm`.

    Each line is a question in the form of ARC or OpenBookQA, as published or as on the Hugging Face hub. It is put as
    lm-eval's `arc_easy` puts ARC's ("Question: …\\nAnswer:"), or as its `openbookqa` puts a `question_stem` (as it stands).

    Raises:
        DataError: the file cannot be read, or a line is no such question; names it.
    """
    questions = read_choices(path)

    def dataset(**metadata: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(questions)}

    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ]
    return {
        "task": path.stem,
        "output_type": "multiple_choice",
        "custom_dataset": dataset,
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_choice": "answers",
        "doc_to_target": "right",
        "metric_list": metrics,
    }


def read_choices(path: Path) -> list[dict[str, Any]]:
    """The questions: `prompt`, `answers`, and the index of the `right` one.

    Raises:
        DataError: see `choice_task`.
    """
    questions: list[dict[str, Any]] = []
    for number, line in enumerate(read_utf8(path, "task file").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            questions.append(_question(json.loads(line)))
        except ValueError as error:  # of JSON too
            raise DataError(f"{path}, line {number}: {error}; expected {EXPECTED}") from error
    if not questions:
        raise DataError(f"task file {path} is empty; expected {EXPECTED}")
    return questions


def _question(record: Any) -> dict[str, Any]:
    """One line, parsed.

    Raises:
        ValueError: it is no question; says what was seen.
    """
    if not isinstance(record, dict):
        raise ValueError(f"seen {_short(record)}")
    bare = "question_stem" in record
    stem, choices = record.get("question_stem" if bare else "question"), record.get("choices")
    if isinstance(stem, dict):  # ARC as published
        stem, choices = stem.get("stem"), stem.get("choices")
    if not isinstance(stem, str) or not stem.strip():
        raise ValueError(f"its question is {_short(stem)}")
    if isinstance(choices, list) and all(isinstance(each, dict) for each in choices):
        choices = {name: [each.get(name) for each in choices] for name in ("text", "label")}
    found = choices if isinstance(choices, dict) else {}
    texts, labels = _strings(found.get("text")), _strings(found.get("label"))
    if not len(texts) == len(labels) >= 2:
        raise ValueError(f"its choices are {_short(choices)}, no texts and labels of two or more")
    answer: Any = record.get("answerKey")
    if labels.count(answer) != 1:
        raise ValueError(f"its answerKey is {_short(answer)}, not one of {', '.join(labels)}")
    prompt = stem if bare else f"Question: {stem}\nAnswer:"
    return {"prompt": prompt, "answers": texts, "right": labels.index(answer)}


def _strings(values: Any) -> list[str]:
    """A list of texts as it is; what is none is an empty one."""
    fine = isinstance(values, list) and all(isinstance(each, str) and each.strip() for each in values)
    return values if fine else []


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
