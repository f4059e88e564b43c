"""The whole flow for models that are no decoders of text: embeddings, images, speech, text to text."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from command import gqakit, succeeds
from family_models import build_family
from tiny_models import tokenizer

from gqakit.planning.plan import Plan


def data_for(kind: str) -> tuple[str, ...]:
    """Options that name what a model runs on."""
    rng = np.random.default_rng(0)
    if kind in ("vit", "dinov2", "clip"):
        np.savez("images.npz", x=rng.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8))
        return "--images", "images.npz"
    if kind in ("whisper", "moonshine", "wav2vec2"):
        with wave.open("speech.wav", "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(rng.integers(-3000, 3000, 4000).astype("<i2").tobytes())
        return "--audio", "speech.wav"
    return ("--window", "16", "--tokens", "96")


@pytest.fixture(params=["bert", "mpnet", "dinov2", "whisper", "moonshine", "wav2vec2", "t5", "clip"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(kind: str, tmp_path: Path) -> Path:
    folder = build_family(tmp_path / "model", kind)
    if kind in ("bert", "mpnet", "t5", "clip"):
        tokenizer().save_pretrained(folder)
    return folder


def test_calibrate_convert_verify_evaluate(source: Path, kind: str) -> None:
    data = data_for(kind)
    out = succeeds(
        "convert", source, "-o", "out", "--kv-ratio", "0.5", "--kv-maps", "separate", *data, "--json"
    )
    plan = Plan.load(Path("out/gqakit-plan.json"))
    assert plan.budget.kv_ratio <= 0.5 + 1e-6
    assert plan.allocation == "knapsack"
    # Moonshine's attention, watched for gradients, does not run; its losses are measured, and that is said.
    assert plan.layer_loss == ("measured" if kind == "moonshine" else "corrected")
    assert Path("out.statistics.safetensors").is_file()
    assert json.loads(out.out)["plan"]["source"]["model_type"] == kind
    cached = kind in ("whisper", "moonshine", "t5")
    several = {"clip": ("text", "vision")}.get(kind, ())
    assert plan.source.stacks == (("decoder", "cross") if cached else several)
    said = "KV cache" if cached else "keys and values"
    assert said in succeeds("plan", "show", "out/gqakit-plan.json").out
    assert f"bytes of {said} per token" in Path("out/README.md").read_text(encoding="utf-8")
    assert said in succeeds("inspect", source).out
    checked = succeeds("verify", source, "out")
    assert "FAILED" not in checked.out
    scored = json.loads(succeeds("evaluate", source, "out", *data, "--json").out)["checkpoints"]
    name = "cosine" if kind in ("bert", "mpnet", "dinov2") else "kl"
    same, ours = (row["scores"][name] for row in scored)
    assert same == pytest.approx(1.0 if name == "cosine" else 0.0, abs=1e-5)
    # Of noise a Whisper writes one token, on which its own attention has no choice: merging that costs nothing.
    assert (ours < 1) if name == "cosine" else (ours > -1e-6 if kind == "whisper" else ours > 0)
    assert (scored[1]["kv_bytes_measured"] is None) == (not cached)


@pytest.mark.parametrize("kind", ["dinov2", "whisper"], indirect=True)
def test_what_a_model_does_not_run_on(source: Path, kind: str) -> None:
    ran = gqakit("calibrate", source, "-o", "m.safetensors")
    option = {"dinov2": "--images", "whisper": "--audio"}[kind]
    assert ran.code == 2
    assert f"give {option}" in ran.err
    both = gqakit("calibrate", source, "-o", "m.safetensors", "--images", "x", "--audio", "y")
    assert both.code == 2
    assert "give one of --images and --audio" in both.err
    assert not Path("m.safetensors").exists()


STACKS_OF = {"whisper": ("decoder", "cross")}


@pytest.mark.parametrize("kind", ["bert", "whisper"], indirect=True)
def test_correlate_samples_the_layers_that_a_plan_would_convert(source: Path, kind: str) -> None:
    data = data_for(kind)
    succeeds("calibrate", source, "-o", "m.safetensors", *data)
    run_on = [part for part in data if part not in ("--tokens", "96")]
    how = ("--statistics", "m.safetensors", "--kv-heads", 3, "--random", 2, "--measure-tokens", 32, *run_on)
    ran = succeeds("correlate", source, *how, "--plot", "c.png", "--json")
    found = json.loads(ran.out)
    named = [f"{stack} {n}" for stack in STACKS_OF.get(kind, ("",)) for n in range(2)]
    assert {sample["layer"] for sample in found["samples"]} == {name.strip() for name in named}
    for sample in found["samples"]:
        # In the noise a decoder hears one token, so its own attention has no choice: what is left there is rounding.
        alone = sample["layer"].startswith("decoder")
        assert abs(sample["loss"]) < 3e-7 if alone else sample["loss"] > 3e-7
    assert ("KL" if kind == "whisper" else "squared error") in found["loss"]
    assert all(0 < found["best"]["ratio"] <= row["picked"]["ratio"] for row in found["rows"])
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")


def test_correlate_of_some_stacks_and_losses_that_are_kept(tmp_path: Path) -> None:
    source = build_family(tmp_path / "model", "whisper")
    data = data_for("whisper")
    succeeds("calibrate", source, "-o", "m.safetensors", *data)
    how = ("--statistics", "m.safetensors", "--kv-heads", 3, "--random", 1, "--layers", 1, *data)
    kept = (*how, "--losses", "l.jsonl", "--json")
    encoder, again = (
        json.loads(succeeds("correlate", source, *kept, "--stacks", "encoder").out) for _ in range(2)
    )
    assert again == encoder
    assert {sample["layer"] for sample in encoder["samples"]} == {"encoder 1"}
    lines = Path("l.jsonl").read_text()
    ran = gqakit("correlate", source, *kept, "--stacks", "cross")
    assert ran.code == 6
    assert "measured with another stacks" in ran.err
    assert Path("l.jsonl").read_text() == lines
    cross = json.loads(succeeds("correlate", source, *how, "--json", "--stacks", "cross").out)
    assert {sample["loss"] for sample in cross["samples"]}.isdisjoint(s["loss"] for s in encoder["samples"])


def test_correlate_refuses_what_the_model_does_not_run_on_and_what_is_grouped(tmp_path: Path) -> None:
    source = build_family(tmp_path / "model", "whisper")
    data = data_for("whisper")
    succeeds("calibrate", source, "-o", "m.safetensors", *data)
    ran = gqakit("correlate", source, "--statistics", "m.safetensors")
    assert ran.code == 2
    assert "give --audio" in ran.err
    succeeds(
        "convert", source, "-o", "out", "--kv-heads", 4, "--statistics", "m.safetensors", "--no-evaluate"
    )
    ran = gqakit("correlate", "out", "--statistics", "m.safetensors", *data)
    assert ran.code == 2
    assert "already a grouped checkpoint" in ran.err


def test_an_unknown_stack(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "model", "whisper")
    ran = gqakit("plan", folder, "--kv-ratio", "0.5", "--stacks", "decoder,middle")
    assert ran.code == 2
    assert "middle" in ran.err
    assert "encoder" in ran.err


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip_vision_model"])
def test_images_at_another_size(tmp_path: Path, kind: str) -> None:
    folder = build_family(tmp_path / "model", kind)
    data = data_for("vit")
    moments = [tmp_path / f"{size}.safetensors" for size in ("own", "16")]
    for path, more in zip(moments, ((), ("--image-size", "16")), strict=True):
        succeeds("calibrate", folder, "-o", path, *data, *more)
    assert moments[0].read_bytes() != moments[1].read_bytes()
    out = succeeds("convert", folder, "-o", "out", "--kv-ratio", "0.5", *data, "--image-size", "16")
    assert Path("out/config.json").is_file(), out.err
    assert succeeds("evaluate", folder, "out", *data, "--image-size", "16")
    ran = gqakit("calibrate", folder, "-o", "m.safetensors", *data, "--image-size", "13")
    assert ran.code == 2
    assert "--image-size 13 is no multiple of the model's patches of 8 pixels" in ran.err
    assert not Path("m.safetensors").exists()
    assert gqakit("calibrate", folder, "-o", "m.safetensors", *data, "--image-size", "0").code == 2


def test_too_little_to_calibrate_on_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = build_family(tmp_path / "model", "bert")
    tokenizer().save_pretrained(folder)
    few = ("calibrate", folder, "-o", "m.safetensors", "--window", "16", "--tokens")
    succeeds(*few, "32")
    assert "only 32 tokens, fewer than the model is wide (64)" in caplog.text
    caplog.clear()
    succeeds(*few, "32", "--quiet")
    succeeds(*few, "64")
    assert "fewer than the model is wide" not in caplog.text


def test_a_sentence_embedder_saved_without_the_head_its_config_names(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "model", "mpnet")
    tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["MPNetForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    data = data_for("mpnet")
    succeeds("convert", folder, "-o", "out", "--kv-ratio", "0.5", *data)
    assert "FAILED" not in succeeds("verify", folder, "out").out
    succeeds("evaluate", folder, "out", *data)
