"""Whatever a config says of attention: a model with one of its keys changed is converted exactly, or refused in one line.

The keys are all that transformers' own code of a family reads, those of sizes, training and feed-forward layers left out. A
switch that nobody looked at shows here whether or not its name tells.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_models import CONFIGS, FAMILIES, VARIANTS, build_family, edit_layers, inputs_of, run
from huggingface_hub.errors import StrictDataclassError
from test_e2e_families import _duplicated

import gqakit
from gqakit.errors import BudgetError, FamilyError, GqakitError
from gqakit.pipeline import convert
from gqakit.planning.make import plan

NO_MATTER = re.compile(
    r"_size$|_token_id$|_layers$|heads$|_positions$|_?dim$|dropout|pdrop|drop_rate|loss|initializer|init_std|label|expert|moe|"
    r"router|sparse|topk|group|conv_|feat_|mask_|summary|classif|^(n_|num_|d_|max_|vocab|model_type|dtype|architectures)|"
    r"transformers_version|^_|config$|use_cache|return_dict|output_|problem_type|layerdrop|is_encoder_decoder|image|video|vision"
)
ROPE = {"rope_theta": 1e4, "original_max_position_embeddings": 8}
OTHER: dict[str, list[Any]] = {
    "position_embedding_type": ["relative_key"],
    "layer_types": [["sliding_attention", "full_attention"], ["full_attention", "chunked_attention"]],
    "rope_parameters": [
        {**ROPE, "rope_type": "linear", "factor": 2.0},
        {**ROPE, "rope_type": "yarn", "factor": 4.0},
        {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.5},
    ],
    "is_causal": [False],
}
"""Values of keys that are no switches of two positions."""


def changes(family: str) -> Iterator[dict[str, Any]]:
    """Each key that a family's code reads, with other values than the matrix has; those of its parts too."""
    data, own = FAMILIES[family], CONFIGS[family]
    kind = getattr(transformers, data.config)
    parts = {data.section, *(stack.part for stack in data.stacks)} - {""}
    yield from _changes(kind, own)
    for part in sorted(parts):
        for changed in _changes(type(getattr(kind(**own), part)), own[part]):
            yield {part: {**own[part], **changed}}


def _changes(kind: Any, own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    code = inspect.getsource(
        importlib.import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    )
    read = re.findall(r"config\.([a-z]\w+)|getattr\(\w*\.?config, ['\"](\w+)", code)
    names, usual = {name for pair in read for name in pair if name} | {"is_causal"}, kind().to_dict()
    for name in sorted(name for name in names if not NO_MATTER.search(name)):
        value = own.get(name, usual.get(name))
        yield from ({name: other} for other in OTHER.get(name, _others(value)) if other != value)


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [type(value)(value * 2), type(value)(1)]
    return [True, 4] if value is None else []


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[pytest.mark.matrix, *[pytest.mark.sample] * (name in ("gemma2", "phi"))])
        for name in CONFIGS
    ],
)
def test_no_switch_is_converted_wrongly(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, made = [], 0
    for change in changes(family):
        changed = f"{family}, {change}"
        monkeypatch.setitem(VARIANTS, changed, (family, change))
        error = _error(tmp_path, changed)
        made += error is not None
        if error is not None and error > 1e-3:
            wrong.append(f"{changed}: off by {error:.1g}")
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
    assert not wrong
    assert made


_NO_MODEL = (
    *(GqakitError, StrictDataclassError, ValueError, TypeError, RuntimeError, LookupError, AttributeError),
    *(AssertionError, ArithmeticError),
)
"""What says that transformers has no such model, or that it does not run."""


@torch.inference_mode()
def _error(folder: Path, variant: str) -> float | None:
    """How far a model of duplicated heads and half of it are apart; None where transformers or gqakit refuse it."""
    source, out = folder / "source", folder / "out"
    try:
        build_family(source, variant)
        run(gqakit.load(source, dtype=torch.float32), inputs_of(variant))
    except _NO_MODEL:
        return None
    try:
        edit_layers(source, variant, _duplicated)
        made = plan(source, kv_ratio=0.5, method="neighbour", merge="mean", format="grouped", progress=False)
    except (FamilyError, BudgetError) as error:  # of one KV head nothing is left to merge
        one_line = "\n" not in str(error)
        return None if one_line else float("inf")
    convert(source, out, plan=made, overwrite=out.exists(), progress=False)
    expected, seen = (
        run(gqakit.load(path, dtype=torch.float32), inputs_of(variant)) for path in (source, out)
    )
    return float((seen - expected).abs().max() / expected.abs().max())
