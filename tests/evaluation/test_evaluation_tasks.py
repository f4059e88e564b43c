"""Tasks: what lm-eval scores through gqakit is what a plain forward pass of transformers gives."""

from __future__ import annotations

import json
import math
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_models import build

import gqakit
from gqakit.evaluation.task_files import choice_task, read_choices
from gqakit.evaluation.task_scores import task_scores
from gqakit.evaluation.tasks import _as_lm_eval_has_it
from gqakit.models.load import load
from gqakit.progress import silent

WORDS = [
    *("the", "history", "of", "rivers", "and", "towns", "was", "written", "by"),
    *("people", "who", "lived", "near", "water", "in", "cold", "winters"),
]
COUNT = 24


def _records() -> list[dict[str, Any]]:
    """Questions in all the forms that are read, each with three answers of two words."""
    records: list[dict[str, Any]] = []
    for n in range(COUNT):
        stem = " ".join(WORDS[(n + k) % len(WORDS)] for k in range(4))
        texts = [" ".join(WORDS[(n * 5 + k * 3 + j) % len(WORDS)] for j in range(2)) for k in range(3)]
        listed = [{"text": text, "label": label} for text, label in zip(texts, "ABC", strict=True)]
        columns = {"text": texts, "label": [*"ABC"]}
        forms = (
            {"question": {"stem": stem, "choices": listed}},
            {"question": stem, "choices": columns},
            {"question_stem": stem, "choices": columns},
        )
        records.append({**forms[n % 3], "answerKey": "ABC"[n // 3 % 3]})
    return records


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A source, its conversion to the same, a bad conversion, and questions."""
    folder = tmp_path_factory.mktemp("tasks")
    build(folder / "source")
    how: dict[str, Any] = {"evaluate": False, "progress": False, "allocation": "uniform"}
    gqakit.convert(folder / "source", folder / "same", kv_heads=8, **how)
    gqakit.convert(folder / "source", folder / "bad", kv_heads=1, method="neighbour", merge="mean", **how)
    gqakit.convert(folder / "source", folder / "grouped", kv_heads=3, format="grouped", **how)
    lines = "\n".join(map(json.dumps, _records()))
    (folder / "questions.jsonl").write_text(lines + "\n\n")
    return folder


def _prompt(record: dict[str, Any]) -> tuple[str, list[str], int]:
    """As ARC and OpenBookQA are put by lm-eval's own tasks."""
    answer = "ABC".index(record["answerKey"])
    if "question_stem" in record:
        return record["question_stem"], record["choices"]["text"], answer
    question = record["question"]
    if isinstance(question, dict):
        return f"Question: {question['stem']}\nAnswer:", [c["text"] for c in question["choices"]], answer
    return f"Question: {question}\nAnswer:", record["choices"]["text"], answer


def _log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """`log p(" answer" | prompt)`, of the tokens that the answer adds to the prompt's."""
    context, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {answer}")["input_ids"]
    with torch.no_grad():
        logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return float(sum(logp[at - 1, whole[at]] for at in range(len(context), len(whole))))


@cache
def _by_hand(path: Path) -> dict[str, list[float]]:
    """acc and acc_norm of each question."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    found: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    for record in _records():
        prompt, answers, right = _prompt(record)
        logs = [_log_likelihood(model, tokenizer, prompt, answer) for answer in answers]
        per_letter = [log / len(answer) for log, answer in zip(logs, answers, strict=True)]
        for metric, values in (("acc", logs), ("acc_norm", per_letter)):
            found[metric].append(float(values.index(max(values)) == right))
    return found


@pytest.fixture(scope="module")
def rows(work) -> list[Any]:
    others = [work / name for name in ("same", "bad", "grouped")]
    return gqakit.evaluate(work / "source", others, tasks=[work / "questions.jsonl"], progress=False)


def test_scores_are_those_of_a_plain_forward_pass(work, rows):
    by_hand = _by_hand(work / "source")
    assert {each.metric for each in rows[0].results} == {"acc", "acc_norm"}
    for each in rows[0].results:
        values = by_hand[each.metric]
        assert 0 < statistics.fmean(values) < 1
        assert each.value == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert each.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(COUNT))
        assert (each.task, each.questions, each.difference) == ("questions", COUNT, 0.0)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("name", ["source", "grouped"])
def test_log_likelihoods_are_those_of_a_plain_forward_pass(work, name, batch_size):
    from lm_eval.api.instance import Instance

    model, tokenizer = load(work / name), AutoTokenizer.from_pretrained(work / "source")
    pairs = [(prompt, answer) for prompt, answers, _ in map(_prompt, _records()) for answer in answers]
    asked = [
        Instance(
            request_type="loglikelihood", doc={}, arguments=(p, f" {a}"), idx=0, metadata=("questions", 0, 1)
        )
        for p, a in pairs
    ]
    made = _as_lm_eval_has_it(model, tokenizer, batch_size, silent, name).loglikelihood(asked)
    expected = [_log_likelihood(model, tokenizer, *pair) for pair in pairs]
    assert [log for log, _ in made] == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert max(expected) - min(expected) > 5


def test_the_same_model_scores_the_same_and_a_bad_conversion_does_not(rows):
    source, same, bad, grouped = rows
    assert [(s.value, s.stderr) for s in same.results] == [(s.value, s.stderr) for s in source.results]
    assert all(each.difference == each.difference_stderr == 0 for each in same.results)
    assert any(each.difference_stderr > 0 for each in bad.results)
    assert (source.kv_ratio, same.kv_ratio, bad.kv_ratio, grouped.kv_ratio) == (1, 1, 1 / 8, 3 / 8)
    for row in rows:
        assert row.kv_bytes_measured == row.kv_bytes_per_token


def test_differences_are_of_the_same_questions(work, rows):
    theirs, ours = _by_hand(work / "source"), _by_hand(work / "bad")
    for each in rows[2].results:
        pairs = zip(ours[each.metric], theirs[each.metric], strict=True)
        differences = [our - their for our, their in pairs]
        assert each.difference == pytest.approx(statistics.fmean(differences))
        assert each.difference_stderr == pytest.approx(statistics.stdev(differences) / math.sqrt(COUNT))


def test_a_metric_that_is_no_mean_over_questions_has_no_difference():
    each = {"filter": "none", "metrics": ["f1", "acc"], "f1": (0, 1)}
    questions = [{"doc_id": n, "acc": n % 2, **each} for n in (0, 1)]
    results = {
        "f1,none": 0.4,
        "f1_stderr,none": "N/A",
        "acc,none": 0.9,
        "acc_stderr,none": 0.1,
        "sample_len": 2,
    }
    made = {"results": {"x": results}, "samples": {"x": questions}}
    f1, acc = task_scores(made, {("x", "acc,none"): {0: 1.0, 1: 1.0}})
    assert (f1.metric, f1.value, f1.stderr, f1.difference) == ("f1", 0.4, None, None)
    assert (acc.value, acc.stderr, acc.difference) == (0.9, 0.1, None)  # 0.9 is not the mean of 0 and 1


def test_a_limit_takes_the_first_questions(work):
    (row,) = gqakit.evaluate(work / "source", tasks=[work / "questions.jsonl"], limit=5, progress=False)
    by_hand = _by_hand(work / "source")
    for each in row.results:
        assert (each.questions, each.value) == (5, pytest.approx(statistics.fmean(by_hand[each.metric][:5])))


def test_a_config_of_lm_eval_needs_no_network(work, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    records = [dict(zip(("ask", "answers", "right"), _prompt(r), strict=True)) for r in _records()]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = {
        "task": "mine", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "doc_to_text": "ask", "doc_to_choice": "answers", "doc_to_target": "right",
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(config))  # JSON is YAML
    (row,) = gqakit.evaluate(work / "source", tasks=[tmp_path / "mine.yaml"], progress=False)
    by_hand = _by_hand(work / "source")
    found = {each.metric: each.value for each in row.results if each.task == "mine"}
    assert found == {name: pytest.approx(statistics.fmean(values)) for name, values in by_hand.items()}


def test_a_cache_that_rounds_is_scored_beside_the_source_as_it_is(work):
    asked = {"tasks": [work / "questions.jsonl"], "kv_cache": "fp8", "limit": 2, "progress": False}
    plain, rounded = gqakit.evaluate(work / "source", **asked)
    assert (plain.kv_cache, rounded.kv_cache, rounded.kv_ratio) == (None, "fp8", 0.5)


def test_questions_are_put_as_by_lm_eval_itself(work):
    """Its own configs of ARC and OpenBookQA, with our lines in the form of the hub in place of the hub's."""
    import lm_eval.tasks
    import yaml
    from jinja2 import Environment

    folder = Path(lm_eval.tasks.__file__).parent
    ours = read_choices(work / "questions.jsonl")
    for path, hub, asked in (
        (folder / "arc" / "arc_easy.yaml", _records()[1], ours[1]),
        (folder / "openbookqa" / "openbookqa.yaml", _records()[2], ours[2]),
    ):
        config = yaml.safe_load(path.read_text())
        template = config["doc_to_text"]
        text = hub[template] if template in hub else Environment().from_string(template).render(**hub)
        right = Environment().from_string(config["doc_to_target"]).render(**hub)
        assert (asked["prompt"], asked["right"]) == (text, int(right))
    assert choice_task(work / "questions.jsonl")["task"] == "questions"
