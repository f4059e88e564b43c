"""A converted checkpoint that was changed afterwards does not pass, and `verify` says which check fails."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import gqakit, refused, succeeds
from tiny_fixtures import Models
from tiny_models import edit_json, edit_tensors

Tensors = dict[str, torch.Tensor]
NORM = "model.layers.1.input_layernorm.weight"
KEY = "model.layers.2.self_attn.k_proj.weight"


def _one_bit(tensors: Tensors) -> None:
    tensors[NORM].view(torch.int32)[3] ^= 1


def _wrong_shape(tensors: Tensors) -> None:
    tensors[KEY] = tensors[KEY][:-4]


def _wrong_type(tensors: Tensors) -> None:
    tensors[KEY] = tensors[KEY].half()


def _nan(tensors: Tensors) -> None:
    tensors[KEY][0, 0] = float("nan")


def _finite(tensors: Tensors) -> None:
    tensors[KEY][0, 0] += 1.0


def _gone(tensors: Tensors) -> None:
    del tensors[NORM]


def _more(tensors: Tensors) -> None:
    tensors["model.layers.0.extra"] = torch.ones(2)


TAMPERED: dict[str, tuple[Callable[[Tensors], None], str, str]] = {
    "a bit of an untouched tensor": (_one_bit, "untouched tensors", NORM),
    "a shape": (_wrong_shape, "structure", f"{KEY} is F32 [4, 32], planned F32 [8, 32]"),
    "a type": (_wrong_type, "structure", f"{KEY} is F16 [8, 32], planned F32 [8, 32]"),
    "a NaN": (_nan, "finite", KEY),
    "a merged weight": (_finite, "checksums", "changed since the conversion: ['model.safetensors']"),
    "a tensor gone": (_gone, "structure", f"{NORM} is missing"),
    "a tensor more": (_more, "structure", "model.layers.0.extra is not expected"),
}


@pytest.fixture(scope="module")
def converted(model: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion of the tiny Llama to two KV heads a layer."""
    path = tmp_path_factory.mktemp("converted")
    succeeds("plan", model(), "--kv-heads", 2, "--method", "neighbour", "-o", path / "plan.json")
    succeeds("convert", model(), "-o", path / "out", "--plan", path / "plan.json")
    return path / "out"


@pytest.fixture
def out(converted: Path) -> Path:
    """A copy of it to tamper with."""
    return Path(shutil.copytree(converted, "out"))


def fails(source: Path, out: Path, check: str, seen: str, weights: bool = True) -> None:
    """`verify` ends with code 8, in words and in JSON, and names the check; changed weights miss their checksum too."""
    refused(8, "verify", source, out, says=("not what its plan promises", check))
    ran = gqakit("verify", source, out)
    (line,) = [line for line in ran.out.splitlines() if line.startswith(f"FAILED  {check}")]
    assert seen in line
    ran = gqakit("verify", source, out, "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["passed"]) == (8, False)
    failed = {c["name"] for c in found["checks"] if not c["passed"]}
    assert failed == ({check, "checksums"} if weights else {check})


@pytest.mark.parametrize(("change", "check", "seen"), TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_tensor(
    model: Models, out: Path, change: Callable[[Tensors], None], check: str, seen: str
) -> None:
    edit_tensors(out, change)
    fails(model(), out, check, seen)


@pytest.mark.parametrize("key", ["rms_norm_eps", "num_key_value_heads", "made_up"])
def test_an_edited_config(model: Models, out: Path, key: str) -> None:
    edit_json(out / "config.json", **{key: 7})
    fails(model(), out, "config", f"unexpected values of ['{key}']", weights=False)


def test_truncated_weights(model: Models, out: Path) -> None:
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(3, "verify", model(), out, says=("model.safetensors",))


def test_without_its_plan(model: Models, out: Path) -> None:
    (out / "gqakit-plan.json").unlink()
    refused(6, "verify", model(), out, says=("cannot read plan", "gqakit-plan.json"))


def test_against_another_source(model: Models, out: Path) -> None:
    refused(6, "verify", model(seed=1), out, says=("another model",))


def test_the_source_against_itself(model: Models) -> None:
    refused(6, "verify", model(), model(), says=("gqakit-plan.json",))


def test_untampered(model: Models, out: Path) -> None:
    ran = succeeds("verify", model(), out)
    assert "FAILED" not in ran.out
    for check in (
        "config",
        "structure",
        "finite",
        "untouched tensors",
        "reload",
        "attention output",
        "cache",
    ):
        assert re.search(rf"^(ok|info) +{check}", ran.out, re.MULTILINE), check
    errors = json.loads(succeeds("verify", model(), out, "--json").out)["layer_errors"]
    assert len(errors) == 4
    assert all(0 < error < 10 for error in errors)
