"""Pipelines of transformers give for a grouped model what they give for its source.

Every source has its heads twice, in other halves of a layer, so that merging them loses nothing and query heads change
their places: what a pipeline makes of the outputs, and of head numbers beside them, must stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_models import CONFIGS, FAMILIES, edit_layers
from PIL import Image
from tiny_models import tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, pipeline

import gqakit
from gqakit.core.attention import AttentionWeights
from gqakit.models.source import Source
from gqakit.planning.make import plan

RATE = 16_000
SOUND = np.random.default_rng(0).standard_normal(RATE * 2).astype(np.float32)


def heads_in_both_halves(weights: AttentionWeights, spec: Any) -> AttentionWeights:
    """KV head `h` equal to `h - 4`."""
    heads = torch.arange(weights.num_kv_heads) % (weights.num_kv_heads // 2)
    return AttentionWeights(
        weights.query, weights.key.select(heads), weights.value.select(heads), weights.output
    )


def heads_twice_apart(weights: AttentionWeights, spec: Any) -> AttentionWeights:
    """Key head `h` equal to `h - 4`, value head `h` to its neighbour: no grouping loses nothing of both."""
    heads = torch.arange(weights.num_kv_heads)
    key, value = weights.key.select(heads % (len(heads) // 2)), weights.value.select(heads // 2 * 2)
    return AttentionWeights(weights.query, key, value, weights.output)


def saved(folder: Path, family: str, name: str, twins: Any = heads_in_both_halves, **changes: Any) -> Path:
    """A random model of a class, with every KV head twice."""
    torch.manual_seed(0)
    config = getattr(transformers, FAMILIES[family].config)(**{**CONFIGS[family], **changes})
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in path:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    if model.can_generate():
        model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    edit_layers(folder, family, twins)
    return folder


def halved(source: Path, kv_maps: str = "shared") -> Path:
    """Converted to half of the KV heads without loss, query heads in another order."""
    how = {"method": "optimal", "merge": "mean", "format": "grouped", "kv_maps": kv_maps, "progress": False}
    made = plan(source, kv_ratio=0.5, **how)
    assert made.groupings[0].query_order(8) != list(range(8))
    gqakit.convert(source, source.parent / "out", plan=made, progress=False)
    return source.parent / "out"


def same(ours: Any, theirs: Any) -> None:
    """Two answers of a pipeline, numbers up to rounding."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == (
            pytest.approx(theirs, abs=1e-4) if isinstance(theirs, float | np.floating) else theirs
        )


def answers(source: Path, task: str, asked: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What a pipeline answers of the conversion and of the source; neither is said to be unfit for the task."""
    return tuple(asked(pipeline(task, str(path))) for path in (halved(source), source))  # pyright: ignore


@pytest.mark.parametrize(
    ("task", "family", "name"),
    [
        ("fill-mask", "modernbert", "ModernBertForMaskedLM"),
        ("text-classification", "bert", "BertForSequenceClassification"),
        ("token-classification", "distilbert", "DistilBertForTokenClassification"),
        ("feature-extraction", "clip_text_model", "CLIPTextModel"),
        ("text-generation", "llama", "LlamaForCausalLM"),
    ],
)
def test_text(task: str, family: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = saved(tmp_path / "source", family, name)
    known = copy.deepcopy(tokenizer())  # the other tests share it
    known.add_special_tokens({"mask_token": "<mask>"})
    known.save_pretrained(source)
    text = "a <mask> cat" if task == "fill-mask" else "a cat and a dog"
    more = {"max_new_tokens": 5, "do_sample": False} if task == "text-generation" else {}
    same(*answers(source, task, lambda ask: ask(text, **more)))
    assert "is not supported for" not in caplog.text


@pytest.mark.parametrize(
    ("task", "family", "name"),
    [
        ("image-classification", "vit", "ViTForImageClassification"),
        ("image-feature-extraction", "dinov2", "Dinov2Model"),
        ("image-feature-extraction", "siglip_vision_model", "SiglipVisionModel"),
    ],
)
def test_images(task: str, family: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = saved(tmp_path / "source", family, name)
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(source)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    same(*answers(source, task, lambda ask: ask(Image.fromarray(pixels))))
    assert "is not supported for" not in caplog.text


def heard(**how: Any) -> Callable[[Any], Any]:
    """Asks a pipeline for what is in the sound."""
    return lambda ask: ask({"raw": SOUND.copy(), "sampling_rate": RATE}, **how)


@pytest.mark.parametrize("timestamps", [None, "char", "word"])
def test_speech_by_ctc(timestamps: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = saved(tmp_path / "source", "wav2vec2", "Wav2Vec2ForCTC")
    _characters(source)
    how = {} if timestamps is None else {"return_timestamps": timestamps}
    ours, theirs = answers(source, "automatic-speech-recognition", heard(**how))
    same(ours, theirs)
    assert theirs["text"]
    assert ("chunks" in theirs) == (timestamps is not None)
    assert "is not supported for" not in caplog.text


def test_speech_is_classified(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = saved(tmp_path / "source", "hubert", "HubertForSequenceClassification", num_labels=3)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(source)
    same(*answers(source, "audio-classification", lambda ask: ask(SOUND.copy())))
    assert "is not supported for" not in caplog.text


def _characters(folder: Path) -> None:
    """A vocabulary of letters, and the extractor, as wav2vec 2.0 has them."""
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmno"]
    vocabulary = folder.parent / "vocab.json"
    vocabulary.write_text("{" + ",".join(f'"{name}": {index}' for index, name in enumerate(names)) + "}")
    transformers.Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


def test_speech_by_a_decoder_of_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = saved(tmp_path / "source", "moonshine", "MoonshineForConditionalGeneration")
    tokenizer().save_pretrained(source)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(source)
    how = {"generate_kwargs": {"max_new_tokens": 8, "num_beams": 1}}
    ours, theirs = answers(source, "automatic-speech-recognition", heard(**how))
    assert ours == theirs
    assert theirs["text"]
    assert "is not supported for" not in caplog.text


@pytest.fixture(scope="module", params=["shared", "separate"])
def whispers(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A Whisper with all that timestamps need, and its conversion, keys and values grouped together or apart."""
    source = tmp_path_factory.mktemp("whisper") / "source"
    known = _whisper_vocabulary()
    ids = dict(known.get_vocab())
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    places = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    more = {"vocab_size": len(ids), "max_source_positions": 1500, "max_target_positions": 64, **places}
    twins = heads_in_both_halves if request.param == "shared" else heads_twice_apart
    saved(source, "whisper", "WhisperForConditionalGeneration", twins, **more)
    GenerationConfig(
        **places,
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        alignment_heads=[[0, 1], [0, 6], [1, 3]],
        max_length=40,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        suppress_tokens=[end],  # a random model would end at once
    ).save_pretrained(source)
    known.save_pretrained(source)
    transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(source)
    return source, halved(source, request.param)


def _whisper_vocabulary() -> Any:
    """Every byte, the special tokens, the timestamps."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    names = [*sorted(ByteLevel.alphabet()), *special, *(f"<|{n * 0.02:.2f}|>" for n in range(1501))]
    roles = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), special[0])
    return transformers.WhisperTokenizer(
        vocab={name: index for index, name in enumerate(names)},
        merges=[],
        additional_special_tokens=special[1:],
        **roles,
    )


@pytest.mark.filterwarnings("ignore:std")  # of a single position, in transformers
@pytest.mark.parametrize("timestamps", [False, True, "word"])
def test_speech_by_whisper(
    timestamps: Any, whispers: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"num_beams": 1, "language": "en", "task": "transcribe", "max_new_tokens": 12}
    ask = heard(generate_kwargs=asked, return_timestamps=timestamps)
    theirs, ours = (ask(pipeline("automatic-speech-recognition", str(path))) for path in whispers)
    same(ours, theirs)
    assert theirs["text"] or not timestamps  # what a random model says without is no text
    assert ("chunks" in theirs) == bool(timestamps)
    assert "is not supported for" not in caplog.text


@pytest.mark.filterwarnings("ignore:std")  # of a single position, in transformers
def test_timestamps_of_words_when_weights_are_asked_for(whispers: tuple[Path, Path]) -> None:
    """By tokens, of a model that was loaded with eager attention and of one that is asked in each call."""
    heard_at = np.stack([SOUND, SOUND[::-1]])
    extract = transformers.WhisperFeatureExtractor(feature_size=8)
    features = extract(list(heard_at), sampling_rate=RATE, return_tensors="pt").input_features
    found: list[Any] = []
    for path in whispers:
        for how in ({"attn_implementation": "eager"}, {}):
            kind = transformers.AutoModelForSpeechSeq2Seq
            model: Any = kind.from_pretrained(path, dtype=torch.float32, **how)
            made = model.generate(
                features, return_token_timestamps=True, language="en", task="transcribe", max_new_tokens=12,
                num_beams=1, output_attentions=not how, return_dict_in_generate=True,
            )  # fmt: skip
            found.append(made)
    first, *rest = found
    assert first["token_timestamps"].unique().numel() > 1
    for each in rest:
        assert torch.equal(each["sequences"], first["sequences"])
        assert torch.allclose(each["token_timestamps"], first["token_timestamps"], atol=1e-4)


def test_the_heads_that_align_words_have_moved(whispers: tuple[Path, Path]) -> None:
    """Without that the test of word timestamps would hold for heads that are left in place."""
    source, out = (
        GenerationConfig.from_pretrained(path).alignment_heads
        for path in whispers  # pyright: ignore
    )
    assert source != out
    assert Source.open(whispers[1]).spec.key_heads == (4, 4, 4, 4)
