"""Tasks that cannot be asked: one line, before any model is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command import refused, succeeds
from tiny_fixtures import Models

GOOD = {"question": "Who?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"}


@pytest.fixture(autouse=True)
def _no_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused here is refused before a model is loaded."""

    def load(*args: Any, **how: Any) -> None:
        raise AssertionError("a model was loaded")

    if "loads" not in request.fixturenames:
        monkeypatch.setattr("gqakit.evaluation.tasks.load_model", load)


@pytest.fixture
def loads() -> None:
    """For a test that scores a model."""


WRONG: list[tuple[str, Any, tuple[str, ...]]] = [
    ("no JSON", "{", ("line 2: Expecting property name",)),
    ("no object", "[1]", ("line 2: seen [1]",)),
    ("no question", {**GOOD, "question": ""}, ('its question is ""',)),
    ("no choices", {**GOOD, "choices": None}, ("its choices are null",)),
    ("one choice", {**GOOD, "choices": {"text": ["a"], "label": ["A"]}}, ("its choices are {",)),
    ("too few labels", {**GOOD, "choices": {"text": ["a", "b"], "label": ["A"]}}, ("texts and labels",)),
    ("choices are numbers", {**GOOD, "choices": [{"text": 1, "label": "A"}]}, ("its choices are",)),
    ("an answer that is none", {**GOOD, "answerKey": "C"}, ('its answerKey is "C", not one of A, B',)),
    ("no answer", {**GOOD, "answerKey": None}, ("its answerKey is null",)),
]


@pytest.mark.parametrize(("line", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_line_that_is_no_question(model: Models, line: Any, says: tuple[str, ...]) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    Path("q.jsonl").write_text(f"{json.dumps(GOOD)}\n{text}\n")
    refused(9, "evaluate", model(), "--tasks", "q.jsonl", says=("q.jsonl, line 2", *says, "expected a line"))


def test_files_that_are_none(model: Models) -> None:
    Path("empty.jsonl").write_text("\n")
    Path("latin.jsonl").write_bytes(b"na\xefve")
    Path("q.csv").write_text("a,b")
    for name, says in (
        ("empty.jsonl", "is empty"),
        ("latin.jsonl", "not UTF-8"),
        ("gone.jsonl", "does not exist"),
        ("./q.csv", "ends in '.csv', expected .jsonl, .yaml or .yml"),
    ):
        refused(9, "evaluate", model(), "--tasks", name, says=(name.removeprefix("./"), says))


def test_options_that_do_not_go_together(model: Models) -> None:
    Path("q.jsonl").write_text(json.dumps(GOOD))
    tasks = ("evaluate", model(), "--tasks", "q.jsonl")
    refused(2, *tasks, "--limit", 0, says=("--limit is 0, expected a number at least 1",))
    refused(2, *tasks, "--blockwise", "always", says=("--tasks run whole models", "--blockwise always"))
    refused(2, *tasks, "--text", "t.txt", says=("--tasks have their own questions; leave out --text",))
    refused(2, "evaluate", model(), "--limit", 3, says=("--limit counts questions of --tasks",))
    refused(2, *tasks, "--max-memory", "1KB", says=("does not fit", "--blockwise never"))


def test_a_model_that_predicts_no_tokens(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path / "bert")
    Path("q.jsonl").write_text(json.dumps(GOOD))
    refused(
        2, "evaluate", "bert", "--tasks", "q.jsonl", says=("causal language models; bert is a BertModel",)
    )


def test_without_lm_eval(model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    Path("q.jsonl").write_text(json.dumps(GOOD))
    refused(10, "evaluate", model(), "--tasks", "q.jsonl", says=("pip install 'gqakit[eval]'",))


def test_two_tasks_of_one_name(model: Models) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "q.jsonl").write_text(json.dumps(GOOD))
    refused(2, "evaluate", model(), "--tasks", "a/q.jsonl,b/q.jsonl", says=("--tasks has q twice",))


def test_configs_that_are_none(model: Models) -> None:
    Path("broken.yaml").write_text("task: x\nmetric_list: [\n")
    refused(9, "evaluate", model(), "--tasks", "broken.yaml", says=("broken.yaml, line 3: is no YAML",))
    Path("odd.yaml").write_text("task: x\nno_such_field: 1\n")
    refused(9, "evaluate", model(), "--tasks", "odd.yaml", says=("odd.yaml", "no_such_field"))
    Path("gone.yaml").write_text(
        "task: x\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        "dataset_kwargs: {data_files: {test: nowhere.jsonl}}\n"
    )
    refused(9, "evaluate", model(), "--tasks", "gone.yaml", says=("gone.yaml", "nowhere.jsonl"))


@pytest.fixture
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lm-eval's 14,000 tasks those of ARC alone: reading all takes a quarter of a minute."""
    from lm_eval.tasks._index import TaskIndex

    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", lambda root: sorted((root / "arc").glob("*.yaml")))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("_few_tasks")
def test_names_of_lm_eval(model: Models) -> None:
    says = ("lm-eval has no task 'arc_eazy'. Did you mean 'arc_easy'",)
    refused(2, "evaluate", model(), "--tasks", "arc_eazy", says=says)
    says = ("task arc_easy: its data cannot be fetched", "give a local file")
    refused(9, "evaluate", model(), "--tasks", "arc_easy", says=says)


@pytest.mark.usefixtures("loads")
def test_a_table_of_80_columns_and_json(model: Models) -> None:
    Path("questions-of-mine.jsonl").write_text("\n".join([json.dumps(GOOD)] * 3))
    asked = ("evaluate", model(), "--tasks", "questions-of-mine.jsonl", "--limit", 2)
    out = succeeds(*asked).out
    assert out.startswith("questions-of-mine, 2 questions, float32\ncheckpoint  kv_ratio  metric")
    assert max(map(len, out.splitlines())) <= 80
    made = json.loads(succeeds(*asked, "--json").out)
    (row,) = made["checkpoints"]
    assert (made["limit"], row["kv_ratio"], len(row["results"])) == (2, 1.0, 2)
    assert row["results"][0].keys() >= {"task", "metric", "value", "stderr", "questions", "difference"}
