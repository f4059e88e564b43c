"""The model card, from a plan and a source directory."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from gqakit.conversion.model_card import model_card, stated_in_card
from gqakit.evaluation.language import LanguageScores
from gqakit.evaluation.table import EvaluationRow, markdown_table
from gqakit.planning.plan import Plan


def plan(key: tuple[int, ...] = (0, 0, 1, 1), value: tuple[int, ...] = (0, 0, 1, 1), **changes: Any) -> Plan:
    """A plan for a model of two layers with four KV heads; the first layer's partitions are given."""
    layers = [
        {"key": key, "value": value, "key_error": 0.1234, "value_error": 0.05},
        {"key": (0, 0, 1, 1), "value": (0, 0, 1, 1), "key_error": 0.2, "value_error": 0.06},
    ]
    content = {
        "source": {
            "name": 'odd "name"',
            "model_type": "llama",
            "fingerprint": "sha256:0",
            "num_layers": 2,
            "num_heads": 8,
            "num_kv_heads": 4,
            "head_dim": 4,
        },
        "budget": {
            "asked": "kv_heads 2",
            "kv_ratio_asked": 0.5,
            "kv_ratio": 0.5,
            "kv_bytes_per_token_before": 2048,
            "kv_bytes_per_token": 1024,
        },
        "format": "grouped",
        "method": "optimal",
        "allocation": "uniform",
        "merging": {"rule": "fold", "key": "fold", "value": "fold"},
        "seed": 3,
        "moments": None,
        "versions": {},
        "layers": layers,
    }
    return Plan.model_validate({**content, **changes})


def test_front_matter_and_facts(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Source\n")
    card = model_card(plan(), tmp_path)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front) == {
        "base_model": 'odd "name"',
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gqakit", "kv-cache"],
    }
    for part in (
        "KV cache of 50%",
        "to 2 KV heads per layer",
        "2,048 → 1,024 bytes",
        "mit (inherited",
        "seed 3",
    ):
        assert part in body
    assert "none (weights only)" in body
    assert "| 0 | 2, 2 | 0.123 | 0.05 |" in body
    assert card.endswith("|\n")


def test_different_numbers_of_heads_are_a_range(tmp_path: Path) -> None:
    assert "to 1 to 3 KV heads per layer" in model_card(plan((0, 1, 2, 2), (0, 0, 0, 0)), tmp_path)


def test_notes_and_calibration(tmp_path: Path) -> None:
    record = {"path": "m.safetensors", "fingerprint": "sha256:1", "tokens": 12288}
    card = model_card(plan(notes=("keys use mean",), moments=record), tmp_path)
    assert "- Note: keys use mean" in card
    assert "- Calibration: 12,288 tokens" in card


def test_measured_loss_replaces_the_layers_errors(tmp_path: Path) -> None:
    rows = [EvaluationRow(name, 2048, 2048.0, 1.0, LanguageScores(9.5, 0.0, 1.0, 62)) for name in "ab"]
    card = model_card(plan(), tmp_path, rows, "some text, 62 predicted tokens")
    assert "On some text, 62 predicted tokens:\n\n" + markdown_table(rows) in card
    assert "| layer |" not in card


def test_the_hub_reads_scores_task_and_how_to_load(tmp_path: Path) -> None:
    scores = LanguageScores(9.5, 0.25, math.inf, 62)
    rows = [EvaluationRow(name, 2048, 2048.0, 1.0, scores) for name in "ab"]
    card = ModelCard(model_card(plan(), tmp_path, rows, "some text"))
    data: Any = card.data
    assert data.pipeline_tag == "text-generation"
    found = data.eval_results
    assert {each.metric_type: each.metric_value for each in found} == {"perplexity": 9.5, "kl": 0.25}
    assert {(each.dataset_name, each.task_type) for each in found} == {("some text", "text-generation")}
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert ast.parse(code)
    assert "import gqakit" in code
    assert "import gqakit" not in model_card(plan(format="uniform"), tmp_path)
    (tmp_path / "README.md").write_text("---\npipeline_tag: text2text-generation\n---\n")
    assert "pipeline_tag: text2text-generation" in model_card(plan(), tmp_path, rows, "some text")


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (None, None),
        ("# No front matter\nlicense: mit\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("---\nlicense:\n---\n", None),
        ("---\nlicense: other\nlicense_name: custom\n---\n", "other"),
        ("", None),
        ("---\nlicense: apache-2.0", None),  # never closed: no front matter, as the hub reads it
    ],
)
def test_the_licence_comes_from_the_front_matter_alone(
    tmp_path: Path, text: str | None, licence: str | None
) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert stated_in_card(tmp_path).get("license") == licence
    card = model_card(plan(), tmp_path)
    assert ("license:" in card) is (licence is not None)
    assert (licence or "whose card states none") in card


@pytest.mark.parametrize(
    ("kind", "auto", "pipeline"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM", "text-generation"),
        ("LlamaForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
        ("LlamaModel", "AutoModel", "feature-extraction"),
    ],
)
def test_the_class_that_loads_it_is_the_source_s(tmp_path: Path, kind: str, auto: str, pipeline: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "llama", "architectures": ["{kind}"]}}')
    card = model_card(plan(), tmp_path)
    assert f"model = {auto}.from_pretrained(" in card
    assert ModelCard(card).data.get("pipeline_tag") == pipeline
