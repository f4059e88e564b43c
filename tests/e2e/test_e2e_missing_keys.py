"""A key that config.json leaves out is what transformers takes for it, or ends in one line; never in a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, gqakit, refused
from family_models import CONFIGS, build_family, in_matrix
from huggingface_hub.errors import StrictDataclassError
from tiny_models import tokenizer
from transformers import AutoConfig

from gqakit.errors import GqakitError
from gqakit.models.inspection import inspect
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.make import plan

PLANNED = [
    *(pytest.param(family, marks=pytest.mark.matrix) for family in ("phi3", "llava", "t5", "bert")),
    *("llama", "whisper", "vit"),
]


def without_one_key(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config without each of its keys in turn, those of a multimodal model's text model too."""
    for key in config:
        yield key, {name: value for name, value in config.items() if name != key}
    text = config.get("text_config", {})
    for key in text:
        less = {name: value for name, value in text.items() if name != key}
        yield f"text_config.{key}", {**config, "text_config": less}


def as_transformers_reads(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config that transformers writes of this one; None if it refuses it."""
    given = {key: value for key, value in config.items() if key != "model_type"}
    try:
        whole = AutoConfig.for_model(config["model_type"], **given).to_dict()
    except (KeyError, ValueError, TypeError, AttributeError, StrictDataclassError):
        return None
    return json.loads(json.dumps(whole))


def spec_of(folder: Path, config: Mapping[str, Any]) -> ModelSpec | None:
    """What a checkpoint with this config is taken for; None if it is refused, which must be in one line."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        spec = Source.open(folder).spec
        assert inspect(folder).key_heads == spec.key_heads
    except GqakitError as error:
        check_one_line(error)
        return None
    return spec


def check_one_line(error: GqakitError) -> None:
    assert str(error).strip()
    assert "\n" not in str(error)


@pytest.mark.parametrize("family", in_matrix(CONFIGS))
def test_a_key_left_out_is_what_transformers_takes_for_it(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    config = json.loads((source / "config.json").read_text())
    whole = spec_of(source, config)
    assert whole is not None
    wrong = []
    for key, less in without_one_key(config):
        seen, filled = spec_of(source, less), as_transformers_reads(less)
        if filled is not None and seen != spec_of(source, filled):
            wrong.append(key)
        if filled == as_transformers_reads(config) and seen != whole:
            wrong.append(f"{key}, which has its default")
    assert not wrong


def test_what_transformers_takes_and_cannot_run_is_one_line(tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", "cohere")
    tokenizer().save_pretrained(source)
    (source / "config.json").write_text(
        json.dumps({**json.loads((source / "config.json").read_text()), "logit_scale": None})
    )
    for command in (("calibrate", source, "-o", "s.safetensors"), ("evaluate", source)):
        refused(3, *command, *SMALL, says=("does not run this model", "modeling_cohere.py: TypeError"))
    with pytest.raises(TypeError):
        gqakit("evaluate", source, *SMALL, "--verbose")


def test_errors_that_are_not_transformers_are_not_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise TypeError("ours")

    monkeypatch.setattr("gqakit.models.attention_hook.Attending", broken)
    source = build_family(tmp_path / "source", "llama")
    tokenizer().save_pretrained(source)
    with pytest.raises(TypeError, match="ours"):
        gqakit("calibrate", source, "-o", "s.safetensors", *SMALL)


@pytest.mark.parametrize("family", PLANNED)
def test_a_plan_without_a_key_is_made_or_refused_in_one_line(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    config = json.loads((source / "config.json").read_text())
    made = 0
    for key in config:
        less = {name: value for name, value in config.items() if name != key}
        (source / "config.json").write_text(json.dumps(less))
        try:
            plan(source, kv_ratio=0.5, method="neighbour", merge="mean", format="grouped", progress=False)
            made += 1
        except GqakitError as error:
            check_one_line(error)
    assert made > len(config) // 2
