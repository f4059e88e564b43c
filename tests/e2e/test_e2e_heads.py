"""Any head on a known body: the same class comes out of a conversion, and what it puts out is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from command import SMALL, refused, succeeds
from family_models import CONFIGS, build_family
from safetensors.torch import load_file
from tiny_models import edit_json, tokenizer

import gqakit
from gqakit.checkpoint import Checkpoint
from gqakit.models.architectures import architecture
from gqakit.models.blockwise.weights import Weights
from gqakit.models.families import FAMILIES

HEADS = {
    "LlamaForSequenceClassification": ("llama", {"num_labels": 1}),
    "Qwen2ForTokenClassification": ("qwen2", {"num_labels": 3}),
    "LlamaForQuestionAnswering": ("llama", {}),
    "MistralModel": ("mistral", {}),
    "GPT2DoubleHeadsModel": ("gpt2", {}),
    "BertForPreTraining": ("bert", {}),
    "BertForMultipleChoice": ("bert", {}),
    "BertForNextSentencePrediction": ("bert", {}),
    "RobertaForQuestionAnswering": ("roberta", {}),
    "CLIPVisionModelWithProjection": ("clip_vision_model", {"projection_dim": 16}),
    "CLIPVisionModel": ("clip_vision_model", {}),
    "ViTForMaskedImageModeling": ("vit", {"encoder_stride": 8}),
    "ViTForImageClassification": ("vit", {"num_labels": 4}),
    "Dinov2Backbone": ("dinov2", {"out_features": ["stage2"]}),
    "FalconForQuestionAnswering": ("falcon", {}),
    "T5EncoderModel": ("t5", {}),
    "T5ForTokenClassification": ("t5", {}),
    "T5ForSequenceClassification": ("t5", {}),
    "BartForSequenceClassification": ("bart", {"eos_token_id": 2}),
    "Gemma3TextForSequenceClassification": ("gemma3_text", {"num_labels": 3}),
    "MoonshineModel": ("moonshine", {}),
    "WhisperModel": ("whisper", {}),
}

WITHOUT_LOGITS = (
    *("MistralModel", "CLIPVisionModelWithProjection", "CLIPVisionModel", "T5EncoderModel"),
    *("ViTForMaskedImageModeling", "Dinov2Backbone", "MoonshineModel", "WhisperModel"),
)


def build(folder: Path, name: str) -> Path:
    """A small random model of a class, with what a user would convert it on."""
    family, changes = HEADS[name]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = getattr(transformers, FAMILIES[family].config)(**{**CONFIGS[family], **changes})
    kind(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    rng = np.random.default_rng(0)
    np.savez(folder.parent / "images.npz", images=rng.integers(0, 255, (6, 24, 24, 3), dtype=np.uint8))
    with wave.open(str(folder.parent / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(rng.integers(-3000, 3000, 4000).astype("<i2").tobytes())
    return folder


@pytest.mark.parametrize("name", HEADS)
def test_the_same_class_comes_out_and_is_measured(name: str, tmp_path: Path) -> None:
    source = build(tmp_path / "source", name)
    task = FAMILIES[HEADS[name][0]].task
    data = {"image": ("--images", tmp_path / "images.npz"), "speech": ("--audio", tmp_path / "speech.wav")}
    data = data.get(task, SMALL)
    if name == "MistralModel":
        gqakit_evaluate = succeeds("evaluate", source, *data).out
        assert "cosine to source" in gqakit_evaluate
    how = ("--format", "grouped", "--layer-loss", "error")  # which layers are merged does not matter here
    succeeds("convert", source, "--kv-ratio", "0.5", *how, "-o", "out", *data)
    config = json.loads(Path("out/config.json").read_text())
    assert config["architectures"] == [f"Gqakit{name}"]
    ours = gqakit.load("out", dtype=torch.float32)
    assert type(ours).__name__ == f"Gqakit{name}"
    assert f"modeling_gqakit.Gqakit{name}" in config["auto_map"].values()
    assert "FAILED" not in succeeds("verify", source, "out", *(() if data is SMALL else data)).out
    rows = json.loads(succeeds("evaluate", source, "out", *data, "--json").out)["checkpoints"]
    assert [row["name"] for row in rows] == ["source", "out"]
    scores = [row["scores"] for row in rows]
    off = [each.get("error", each.get("kl")) for each in scores]
    assert off[0] == 0
    assert off[1] > 0
    assert ("cosine" in scores[0]) == (name in WITHOUT_LOGITS)


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "Gemma3TextForSequenceClassification"])
def test_a_head_that_makes_its_body_by_an_auto_class_loads_without_gqakit(name: str, tmp_path: Path) -> None:
    source = build(tmp_path / "source", name)
    how = ("--kv-ratio", "0.5", "--format", "grouped", "--layer-loss", "error", "--no-evaluate")
    succeeds("convert", source, *how, "-o", "out", *SMALL)
    ids = torch.arange(4, 24)[None]
    ours = gqakit.load("out", dtype=torch.float32)(input_ids=ids).logits
    code = (
        "import sys, torch; sys.modules['gqakit'] = None\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained('out', trust_remote_code=True, dtype=torch.float32).eval()\n"
        "print(model(input_ids=torch.arange(4, 24)[None]).logits.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.allclose(torch.tensor(json.loads(done.stdout.splitlines()[-1])), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["WhisperForCausalLM", "BartForCausalLM"])
def test_a_decoder_without_its_encoder_is_refused(name: str, tmp_path: Path) -> None:
    kind, family = getattr(transformers, name), name.removesuffix("ForCausalLM").lower()
    kind(getattr(transformers, FAMILIES[family].config)(**CONFIGS[family])).save_pretrained(
        tmp_path / "model"
    )
    refused(4, "inspect", tmp_path / "model", says=("a decoder without its encoder", "encoder.layers.0"))


def test_block_by_block_a_head_stays(tmp_path: Path) -> None:
    """An encoder whose head is there is not run without it, as one is that was saved without."""
    source = build(tmp_path / "source", "BertForNextSentencePrediction")
    weights = Weights(Checkpoint.open(str(source)), torch.float32, "cpu")
    assert type(weights.model).__name__ == "BertForNextSentencePrediction"


def test_block_by_block_a_head_that_makes_a_cache_is_calibrated_and_repaired(tmp_path: Path) -> None:
    """Falcon's does not pass on that none is wanted, and a block that runs twice would read its own keys again."""
    source = build(tmp_path / "source", "FalconForQuestionAnswering")
    how = (*SMALL, "--no-evaluate")
    succeeds("convert", source, "-o", "out", "--kv-ratio", "0.5", "--blockwise", "always", *how)
    succeeds("repair", "out", "-o", "repaired", "--source", source, "--steps", 2, *how)
    whole, blocks = (f"{each}.safetensors" for each in ("whole", "blocks"))
    succeeds("calibrate", source, "-o", whole, *SMALL, "--blockwise", "never")
    succeeds("calibrate", source, "-o", blocks, *SMALL, "--blockwise", "always")
    one, other = (load_file(path) for path in (whole, blocks))
    assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5) for name in one)


def test_an_encoder_alone_is_its_encoder(tmp_path: Path) -> None:
    from gqakit.models.source import Source

    spec = Source.open(build(tmp_path / "t5", "T5EncoderModel")).spec
    assert (spec.stacks, spec.is_cached, spec.family.task) == (("encoder",), False, "embedding")
    for stacks in ((), ("--stacks", "encoder")):
        succeeds("convert", tmp_path / "t5", "--kv-ratio", "0.5", *stacks, *SMALL, "--overwrite", "-o", "out")


def test_a_class_that_is_not_known_is_said_and_never_swapped(tmp_path: Path) -> None:
    source = build(tmp_path / "source", "LlamaForSequenceClassification")
    edit_json(source / "config.json", architectures=["LlamaForRanking"])
    refused(
        4,
        "convert",
        source,
        "--kv-ratio",
        "0.5",
        "--format",
        "grouped",
        *SMALL,
        "-o",
        "out",
        says=("LlamaForRanking",),
    )


def test_a_config_without_a_class_is_the_familys_usual_one() -> None:
    assert architecture({"model_type": "llama"}) == "LlamaForCausalLM"
    assert architecture({"model_type": "bert", "architectures": None}) == "BertModel"
    assert architecture(
        {"model_type": "gqakit_vit", "architectures": ["GqakitViTForImageClassification"]}
    ) == ("ViTForImageClassification")


@pytest.mark.parametrize(
    "name", ["LlamaForTokenClassification", "MistralModel", "BertForMaskedLM", "WhisperModel"]
)
def test_what_writes_no_text_is_not_asked_to(name: str, tmp_path: Path) -> None:
    family = {"Llama": "llama", "Mistr": "mistral", "BertF": "bert", "Whisp": "whisper"}[name[:5]]
    getattr(transformers, name)(
        getattr(transformers, FAMILIES[family].config)(**CONFIGS[family])
    ).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    refused(2, "generate", tmp_path / "model", "a cat", says=(name, "writes no text"))


def test_the_answer_of_an_encoder_with_a_decoder_is_whole(tmp_path: Path) -> None:
    """Unlike a decoder's continuation it does not begin with the prompt."""
    model = gqakit.load(build_family(tmp_path / "model", "t5"))
    tokenizer().save_pretrained(tmp_path / "model")
    prompt, kind = "a cat and a dog and a cat", tokenizer()
    ids = model.generate(**kind(prompt, return_tensors="pt"), max_new_tokens=6, do_sample=False)
    expected = kind.decode(ids[0], skip_special_tokens=True)
    assert expected
    assert gqakit.generate(tmp_path / "model", prompt, max_new_tokens=6) == expected
