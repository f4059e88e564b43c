"""What transformers and PEFT find by model type or class name they find of a grouped checkpoint as of its source."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_models import build_family
from tiny_models import build, tokenizer
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline

import gqakit
from gqakit.conversion.side_files import moved_heads
from gqakit.models.source import Source
from gqakit.planning.make import plan


def strip(path: Path, *keys: str) -> None:
    """Leave keys out of a JSON file, as many checkpoints on the hub do."""
    data = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in data.items() if key not in keys}))


def grouped(folder: Path, *data: Any) -> Path:
    """A conversion from weights alone."""
    made = plan(folder, kv_ratio=0.5, method="random", merge="mean", format="grouped", progress=False)
    gqakit.convert(folder, folder.parent / "out", plan=made, progress=False)
    return folder.parent / "out"


def untrusting(code: str) -> str:
    """What a process prints last that has no gqakit and trusts no code."""
    code = f"import sys\nsys.modules['gqakit'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize("family", ["gpt2", "roberta", "llama"])
def test_a_tokenizer_without_a_class_is_the_sources(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    tokenizer().save_pretrained(source)
    strip(
        source / "tokenizer_config.json",
        "tokenizer_class",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
    )
    out = grouped(source)
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (out, source))
    assert type(ours) is type(theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map
    text = "a cat and a dog"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    code = f"from transformers import AutoTokenizer\nprint(type(AutoTokenizer.from_pretrained({str(out)!r})).__name__)"
    if family == "gpt2":
        assert untrusting(code) == type(theirs).__name__


def test_a_tokenizer_that_is_a_vocabulary_alone_is_the_sources(tmp_path: Path) -> None:
    """bert-base-uncased has no more than this."""
    source = build_family(tmp_path / "source", "bert")
    (source / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"])
    )
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (grouped(source), source))
    assert type(ours) is type(theirs)
    assert ours("a cats")["input_ids"] == theirs("a cats")["input_ids"]


def test_processors_without_a_class_are_the_sources(tmp_path: Path) -> None:
    source = build_family(tmp_path / "vit" / "source", "vit")
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(source)
    strip(
        source / "preprocessor_config.json",
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
    )
    ours, theirs = (AutoImageProcessor.from_pretrained(path) for path in (grouped(source), source))
    assert type(ours) is type(theirs)

    source = build_family(tmp_path / "whisper" / "source", "whisper")
    tokenizer().save_pretrained(source)
    transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(source)
    strip(source / "preprocessor_config.json", "feature_extractor_type", "processor_class")
    out = grouped(source)
    ours, theirs = (AutoFeatureExtractor.from_pretrained(path) for path in (out, source))
    assert type(ours) is type(theirs)
    assert type(AutoProcessor.from_pretrained(out)).__name__ == "WhisperProcessor"


def test_a_loaded_config_has_the_familys_type_and_files_keep_the_grouped_one(tmp_path: Path) -> None:
    out = grouped(build(tmp_path / "source"))
    model = gqakit.load(out)
    assert model.config.model_type == "llama"
    assert model.config.to_dict()["model_type"] == "gqakit_llama"
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == "gqakit_llama"
    assert gqakit.load(tmp_path / "again").config.model_type == "llama"


def test_pipelines_know_the_grouped_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = build(tmp_path / "source")
    out = grouped(source)
    texts = [pipeline("text-generation", str(path))("a cat", max_new_tokens=3) for path in (source, out)]
    assert texts[0][0].keys() == texts[1][0].keys()
    bert = build_family(tmp_path / "bert" / "source", "bert")
    tokenizer().save_pretrained(bert)
    states = [pipeline("feature-extraction", str(path))("a cat") for path in (bert, grouped(bert))]
    assert np.shape(states[0]) == np.shape(states[1])
    assert "is not supported for" not in caplog.text


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_adapts_what_it_adapts_of_the_source(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    source = build(tmp_path / "source")
    ours, theirs = (
        peft.get_peft_model(gqakit.load(path), peft.LoraConfig(r=2)).peft_config["default"].target_modules
        for path in (grouped(source), source)
    )
    assert ours == theirs


def test_alignment_heads_follow_the_query_heads(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "source", "whisper")
    spec = Source.open(folder).spec
    made = plan(folder, kv_ratio=0.5, method="random", merge="mean", progress=False)
    heads = [[layer, head] for layer in range(2) for head in range(8)]
    moved = moved_heads(heads, spec, made)
    assert moved != heads
    cross = {site.index: made.groupings[at] for at, site in enumerate(spec.sites) if site.stack.cross}
    for (layer, head), (same, place) in zip(heads, moved, strict=True):
        assert same == layer
        assert cross[layer].query_order(8)[place] == head


def test_word_timestamps_of_speech(tmp_path: Path) -> None:
    folder = build_family(tmp_path / "source", "whisper")
    settings = {
        "alignment_heads": [[0, 1], [1, 6]],
        "decoder_start_token_id": 3,
        "no_timestamps_token_id": 100,
    }
    settings |= {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "is_multilingual": False,
        "max_length": 12,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model: Any = gqakit.load(grouped(folder), dtype=torch.float32)
    made = model.generate(
        torch.randn(1, 8, 40),
        return_token_timestamps=True,
        return_timestamps=True,
        num_frames=40,
        max_new_tokens=4,
    )
    assert made["token_timestamps"].shape[0] == 1


def test_conversions_whose_files_name_classes_keep_them_byte_for_byte(tmp_path: Path) -> None:
    source = build(tmp_path / "source")
    out = grouped(source)
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
