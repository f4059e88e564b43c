"""`repair` of models that are no decoders of text alone: encoders, images, speech, text to text; and of some stacks."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import gqakit, refused, succeeds
from family_models import STACKS, VARIANTS, build_family, output_of
from tiny_models import hashes, tokenizer

from gqakit.checkpoint import Checkpoint
from gqakit.evaluation.evaluate import evaluate
from gqakit.models.families import FAMILIES
from gqakit.planning.make import plan
from gqakit.recovery.repair import layers as training

STEPS = ("--steps", 8)
_BUILT: dict[str, Path] = {}


def record_clips(folder: str, count: int, seed: int) -> None:
    """Some recordings of different lengths, of a few tones each."""
    Path(folder).mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        time = np.arange(4000 + 400 * number) / 16_000
        sound = sum(np.sin(2 * np.pi * tone * time) for tone in rng.uniform(100, 3000, 4)) / 4
        with wave.open(f"{folder}/{number:02d}.wav", "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes((20_000 * sound).astype("<i2").tobytes())


def data_for(variant: str) -> tuple[Any, ...]:
    """Options that name what a family runs on, made here."""
    kind = FAMILIES[VARIANTS[variant][0]].data
    if kind == "audio":
        record_clips("clips", 6, seed=0)
        return ("--audio", "clips")
    if kind == "images":
        pixels = np.random.default_rng(0).integers(0, 255, (40, 24, 24, 3), dtype=np.uint8)
        np.savez("images.npz", images=pixels)
        return ("--images", "images.npz")
    return ("--tokens", 512, "--window", 32)


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint of a variant, built once."""
    variant = request.getfixturevalue("variant")
    if variant not in _BUILT:
        _BUILT[variant] = build_family(tmp_path_factory.mktemp("kinds") / variant, variant)
        if FAMILIES[VARIANTS[variant][0]].data == "text":
            tokenizer().save_pretrained(_BUILT[variant])
    return _BUILT[variant]


def converted(source: Path, variant: str, *more: Any, ratio: float = 0.5) -> None:
    """A conversion from weights alone, in `plain`."""
    stacks = STACKS.get(variant, ())
    made = plan(
        source,
        **{"kv_ratio": ratio, "stacks": stacks, "method": "neighbour", "merge": "mean", "format": "grouped"},
        progress=False,
    )
    made.save(Path("plan.json"))
    succeeds("convert", source, "-o", "plain", "--plan", "plan.json", *more)


def repaired(source: Path, data: tuple[Any, ...], *more: Any, out: str = "fixed") -> dict[str, Any]:
    succeeds("repair", "plain", "--source", source, "-o", out, *data, *STEPS, "--no-evaluate", *more)
    return json.loads((Path(out) / "gqakit-repair.json").read_text())


def changed_tensors() -> set[str]:
    plain, fixed = Checkpoint.open("plain"), Checkpoint.open("fixed")
    return {name for name in plain.tensors if not torch.equal(plain.load(name), fixed.load(name))}


@pytest.mark.parametrize(
    "variant",
    [
        *("bert", "dinov2", "bart", "whisper_encoder", "t5_everything"),
        *(
            pytest.param(name, marks=pytest.mark.matrix)
            for name in ("moonshine", "vit", "modernbert", "pegasus")
        ),
    ],
)
def test_every_kind_that_runs_block_by_block_is_repaired(source: Path, variant: str) -> None:
    data = data_for(variant)
    converted(source, variant)
    layers = repaired(source, data)["layers"]
    assert any(layer["repaired"] for layer in layers)
    assert all(layer["error_after"] < layer["error_before"] for layer in layers if layer["repaired"])
    family = FAMILIES[VARIANTS[variant][0]]
    chosen = STACKS.get(variant) or [stack.name for stack in family.stacks if stack.cached]
    homes = [
        stack.stored_norm(layer, "")
        for stack in family.stacks
        if not chosen or stack.name in chosen
        for layer in range(2)
    ]
    assert all(any(home in name for home in homes) for name in changed_tensors())
    said = json.loads(succeeds("verify", source, "fixed", "--json").out)["checks"]
    assert next(check for check in said if check["name"] == "untouched tensors")["passed"]
    again = torch.linalg.vector_norm(output_of(Path("fixed"), variant) - output_of(source, variant))
    before = torch.linalg.vector_norm(output_of(Path("plain"), variant) - output_of(source, variant))
    assert again < before


@pytest.mark.parametrize("variant", ["whisper", "t5_everything"])
def test_what_was_kept_is_left_alone(source: Path, variant: str) -> None:
    data = data_for(variant)
    converted(source, variant, ratio=1.0)
    layers = repaired(source, data)["layers"]
    assert not any(layer["repaired"] for layer in layers)
    assert changed_tensors() == set()


@pytest.mark.parametrize("variant", ["bart", "t5_everything", "whisper"])
def test_only_the_stacks_that_are_asked_for_are_repaired(source: Path, variant: str) -> None:
    data = data_for(variant)
    converted(source, variant)
    asked = repaired(source, data, "--stacks", "cross")
    assert asked["stacks"] == ["cross"]
    (cross,) = (stack for stack in FAMILIES[VARIANTS[variant][0]].stacks if stack.cross)
    names = changed_tensors()
    assert names
    homes = [cross.stored_norm(layer, "") for layer in range(2)]
    assert all(any(home in name for home in homes) for name in names)
    at = ("repair", "plain", "--source", source, "-o", "new", *data, *STEPS)
    refused(
        2, *at, "--stacks", "tower", says=("unknown kind of attention layers that was converted", "cross")
    )
    if variant == "bart":  # its encoder was not converted
        refused(2, *at, "--stacks", "encoder", says=("'encoder'", "Known: cross, decoder"))


@pytest.mark.parametrize("variant", ["whisper"])
def test_a_repaired_speech_model_loses_less_on_other_recordings(source: Path, variant: str) -> None:
    data = data_for(variant)
    converted(source, variant)
    repaired(source, data, "--steps", 40)
    record_clips("others", 4, seed=9)
    rows = evaluate(source, ["plain", "fixed"], audio="others", progress=False)
    assert rows[2].scores.kl < 0.7 * rows[1].scores.kl  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("variant", ["t5_everything"])
def test_killed_in_a_decoder_it_goes_on_to_the_same_bytes(
    source: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_for(variant)
    converted(source, variant)
    repaired(source, data, out="whole")
    fit, seen = training.fit, []

    def interrupted(*args: Any) -> None:
        seen.append(args[0].layer)
        fit(*args)
        if args[0].layer == 2:  # the decoder's first block, behind the encoder's two
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", interrupted)
        ran = gqakit("repair", "plain", "--source", source, "-o", "fixed", *data, *STEPS, "--no-evaluate")
        assert ran.code == 130
    repaired(source, data)
    assert seen == [0, 1, 2]
    assert hashes(Path("fixed")) == hashes(Path("whole"))
    assert not Path("fixed.repair").exists()


@pytest.mark.parametrize("variant", ["marian", "wav2vec2", "clip"])
def test_what_cannot_run_block_by_block_is_refused_before_any_work(source: Path, variant: str) -> None:
    data = data_for(variant)
    converted(source, variant)
    said = refused(
        2, "repair", "plain", "--source", source, "-o", "fixed", *data, says=("repair goes block by block",)
    )
    assert "cannot be run so: its" in said
    shutil.rmtree("plain")
    refused(2, "convert", source, "-o", "x", "--kv-ratio", 0.5, *data, "--repair", says=("block by block",))


@pytest.mark.parametrize("variant", ["whisper"])
def test_speech_is_converted_and_repaired_at_once(source: Path, variant: str) -> None:
    data = data_for(variant)
    converted(source, variant)
    layers = repaired(source, data)["layers"]
    shutil.move("plain", "apart")
    converted(source, variant, "--repair", "--repair-steps", 8, *data)
    assert json.loads(Path("plain/gqakit-repair.json").read_text())["layers"] == layers
    assert hashes(Path("plain"))["model.safetensors"] == hashes(Path("fixed"))["model.safetensors"]
