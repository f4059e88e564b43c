"""Scores of a model that runs block by block are those of the whole model; several processes get those of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))

from family_models import build_family, inputs_of
from test_calibration_in_sequence import launch, printed
from tiny_models import build
from torch.utils._pytree import register_pytree_node
from transformers import DynamicCache

import gqakit
from gqakit.evaluation import runners
from gqakit.evaluation.agreement import agreement, embed
from gqakit.evaluation.language import score_language
from gqakit.evaluation.runners import InSequence, Whole
from gqakit.models.blockwise.blocks import Blocks
from gqakit.models.blockwise.calls import Call
from gqakit.models.source import Source

HOW: dict[str, Any] = {"tokens": 300, "window": 64, "progress": False}


@pytest.mark.parametrize("variant", ["llama", "gemma2", "whisper", "t5", "bert", "vit"])
def test_scores_and_cache_of_every_kind(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "LOGITS", 160 * 7)  # so that logits come in several parts
    pairs: list[tuple[InSequence, Whole]] = []
    for seed in (0, 1):
        source = Source.open(build_family(tmp_path / str(seed), variant, seed)).with_all_stacks()
        cached = {"use_cache": False} if source.spec.is_cached else {}
        batches = {
            n: {**{k: v[n : n + 1] for k, v in inputs_of(variant).items()}, **cached} for n in range(2)
        }
        by_block = InSequence(Blocks(source.checkpoint, source.spec))
        by_block.pass_through(batches, lambda positions: None)
        pairs.append((by_block, Whole(gqakit.load(source.path, dtype=torch.float32))))
    (first, whole_first), (second, whole_second) = pairs
    with first.ready(), second.ready():
        if first.predicts:
            ours = score_language(second, batches, first)
            theirs = score_language(whole_second, batches, whole_first)
            assert (ours.perplexity, ours.kl) == pytest.approx((theirs.perplexity, theirs.kl), rel=1e-5)
            assert (ours.top1, ours.tokens) == (theirs.top1, theirs.tokens)
            assert ours.kl > 0.01
            cache = second.cache(source.spec, batches[0], None)
            assert cache == whole_second.cache(source.spec, batches[0], None)
            assert cache is not None
            assert cache > 0
        else:
            ours, theirs = (
                agreement(embed(b, batches, "first"), embed(a, batches, "first"))
                for a, b in ((first, second), (whole_first, whole_second))
            )
            assert (ours.cosine, ours.error) == pytest.approx((theirs.cosine, theirs.error), rel=1e-5)
            assert ours.error > 0.01


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two conversions of it."""
    folder = tmp_path_factory.mktemp("scored")
    build(folder / "model")
    for name, heads in (("half", 4), ("two", 2)):
        how = {"method": "neighbour", "merge": "mean", "format": "grouped", "progress": False}
        gqakit.convert(folder / "model", folder / name, kv_heads=heads, allocation="uniform", tokens=256, window=64,
                       evaluate=False, **how)  # fmt: skip
    return folder


def same(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        mine, its = ({**row, **row["scores"]} for row in (mine, its))
        for name in (
            "kv_bytes_per_token",
            "kv_bytes_measured",
            "kv_ratio",
            "perplexity",
            "kl",
            "top1",
            "tokens",
        ):
            assert mine[name] == pytest.approx(its[name], rel=1e-4, abs=1e-6), name


def rows_of(result: Any) -> Any:
    from gqakit.cli.console import _jsonable

    return _jsonable(result)


def test_evaluate_and_verify_in_sequence(made: Path) -> None:
    source, others = made / "model", [made / "half", made / "two"]
    whole = rows_of(gqakit.evaluate(source, others, blockwise="never", **HOW))
    same(rows_of(gqakit.evaluate(source, others, blockwise="always", **HOW)), whole)
    assert whole[2]["scores"]["kl"] > whole[1]["scores"]["kl"] > 0
    checked = {
        blockwise: gqakit.verify(source, made / "half", window=32, blockwise=blockwise, progress=False)
        for blockwise in ("never", "always")
    }
    assert all(each.passed for each in checked.values())
    assert checked["always"].layer_errors == pytest.approx(checked["never"].layer_errors, rel=1e-4)
    assert min(checked["always"].layer_errors) > 0.001
    details = [{check.name: check.detail for check in each.checks} for each in checked.values()]
    assert details[0]["cache"] == details[1]["cache"]


SCORE = """
import os, sys
import gqakit
from gqakit.cli import main

model, other = sys.argv[1:3]
for blockwise in ("never", "always"):
    sys.argv = ["gqakit", "evaluate", model, other, "--tokens", "300", "--window", "64", "--json", "--blockwise", blockwise]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    print("----", flush=True)
gqakit.repair(other, "repaired", source=model, tokens=600, window=32, steps=8, evaluate=False, progress=False)
"""


def test_two_processes_score_and_repair_as_one(made: Path, tmp_path: Path) -> None:
    whole = rows_of(gqakit.evaluate(made / "model", [made / "half"], **HOW))
    alone = gqakit.repair(
        made / "half", tmp_path / "alone", source=made / "model", tokens=600, window=32, steps=8, evaluate=False,
        progress=False,
    )  # fmt: skip
    ran = launch(SCORE, made / "model", made / "half", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    first, second = printed(tmp_path)
    assert second.split() == ["----", "----"]
    results = [json.loads(text) for text in first.split("----\n") if text]
    assert len(results) == 2
    for each in results:
        same(each["checkpoints"], whole)
    record = json.loads((tmp_path / "repaired" / "gqakit-repair.json").read_text())
    for layer, expected in zip(record["layers"], alone.layers, strict=True):
        assert layer["error_before"] == pytest.approx(expected.error_before, rel=1e-4)
        assert layer["error_after"] == pytest.approx(expected.error_after, rel=1e-3)
        assert layer["error_after"] < layer["error_before"]
    assert not [*tmp_path.glob("*.repair")]


def test_a_cache_stays_whole_where_torch_knows_how_to_take_it_apart() -> None:
    """As after an export to ONNX in the same process, which registers transformers' caches."""

    class Known(DynamicCache):
        pass

    register_pytree_node(Known, lambda cache: ([torch.zeros(2)], None), lambda parts, _: Known())
    cache = Known()
    _, call = Call.of((torch.ones(3),), {"past_key_values": cache, "mask": torch.ones(2)})
    assert any(leaf is cache for leaf in call.leaves)
    seen: list[object] = []
    call.on(lambda hidden, past_key_values, mask: seen.append(past_key_values), torch.ones(3))
    assert seen[0] is cache
