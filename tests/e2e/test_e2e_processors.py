"""What prepares pictures and text for a model that sees is after a conversion what it was before, and sees as before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_models import build_family
from test_e2e_by_type import strip
from tiny_models import edit_json, tokenizer
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

import gqakit
from gqakit.pipeline import convert
from gqakit.planning.make import plan

PICTURE: Any = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
SQUARE: Any = {"height": 24, "width": 24}
LONGEST: Any = {"size": {"longest_edge": 24}, "max_image_size": {"longest_edge": 24}}
PATCHES: Any = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
IDEFICS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")


def words(*names: str, **roles: str) -> Any:
    """The tokenizer with more special tokens, and some that its processor asks for by role."""
    known = deepcopy(tokenizer())
    known._set_model_specific_special_tokens(roles)
    known.add_special_tokens({"additional_special_tokens": [*names, *roles.values()]})
    return known


def _paligemma() -> Any:
    image = transformers.SiglipImageProcessor(size=SQUARE)
    image.image_seq_length = 9
    return transformers.PaliGemmaProcessor(image, words("<image>"))


def _gemma3() -> Any:
    known = words(boi_token="<boi>", eoi_token="<eoi>", image_token="<image>")
    image = transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return transformers.Gemma3Processor(image, known, image_seq_length=4)


def _qwen(kind: str, videos: str) -> Any:
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    known = words("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    image = transformers.Qwen2VLImageProcessor(patch_size=8, size=size)
    return getattr(transformers, kind)(image, known, getattr(transformers, videos)(patch_size=8, size=size))


def _smolvlm() -> Any:
    image = transformers.SmolVLMImageProcessor(**LONGEST)
    videos = transformers.SmolVLMVideoProcessor(**LONGEST)
    return transformers.SmolVLMProcessor(image, words(*IDEFICS), videos, image_seq_len=1)


def _pixtral() -> Any:
    image = transformers.PixtralImageProcessor(size={"longest_edge": 24}, patch_size=8)
    known = words("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return transformers.PixtralProcessor(image, known, patch_size=8, spatial_merge_size=1)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": lambda: transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size=SQUARE, crop_size=SQUARE),
        words("<image>"),
        **PATCHES,
        image_token="<image>",
    ),
    "llava_next": lambda: transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 24}, crop_size=SQUARE, image_grid_pinpoints=[[24, 48], [48, 24]]
        ),
        words("<image>"),
        **PATCHES,
        image_token="<image>",
    ),
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "idefics3": lambda: transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(**LONGEST), words(*IDEFICS), image_seq_len=1
    ),
    "qwen2_vl": lambda: _qwen("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": lambda: _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": lambda: _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "smolvlm": _smolvlm,
    "mistral3": _pixtral,
}
# Processors that need more than gqakit's extras, of which torchvision is for machines whose torch it was built for.
NEEDS: dict[str, Any] = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3"), ("torchvision",))
NEEDS["smolvlm"] = ("torchvision", "num2words")
# What stands for an image in a text, and the config's keys of these tokens.
_PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
TOKENS: dict[str, Any] = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _PADS) | {
    "mistral3": {"image": "[IMG]"}
}
ASKS: dict[str, str] = dict.fromkeys(
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|><|image_pad|><|vision_end|>"
)
ASKS |= {"mistral3": "[IMG]", "gemma3": "<boi>"}
SAMPLE = ("gemma3", "qwen2_vl")


def some(families: Iterable[str]) -> list[Any]:
    """Parameters of a test; by default those of the sample alone."""
    return [pytest.param(each, marks=() if each in SAMPLE else pytest.mark.matrix) for each in families]


def same(source: Path) -> Path:
    """Converted with every head kept."""
    made = plan(
        source,
        kv_ratio=1.0,
        method="neighbour",
        merge="mean",
        format="grouped",
        kv_maps="shared",
        progress=False,
    )
    convert(source, source.parent / "out", plan=made, progress=False)
    return source.parent / "out"


def seeing(folder: Path, family: str) -> Path:
    """A random model with its processor, which agree on what stands for an image."""
    for package in NEEDS.get(family, ()):
        pytest.importorskip(package, reason=f"the processor of {family} needs {package}")
    source = build_family(folder / "source", family)
    processor = PROCESSORS[family]()
    processor.chat_template = "{{ messages }}"
    processor.save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    for kind, token in TOKENS.get(family, {"image": "<image>"}).items():
        number = processor.tokenizer.convert_tokens_to_ids(token)
        keys = [key for key in (f"{kind}_token_id", f"{kind}_token_index") if key in config]
        edit_json(source / "config.json", **dict.fromkeys(keys, number))
    return source


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
@pytest.mark.parametrize("family", some(PROCESSORS))
def test_a_picture_goes_the_same_way_through_processor_and_model(family: str, tmp_path: Path) -> None:
    source = seeing(tmp_path, family)
    out = same(source)
    for name in ("processor_config.json", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    made, logits = [], []
    for folder in (source, out):
        processor = AutoProcessor.from_pretrained(folder)
        assert type(processor) is type(PROCESSORS[family]())
        text = ASKS.get(family, "<image>") + "Look"
        made.append(processor(text=text, images=[PICTURE], return_tensors="pt"))
        with torch.inference_mode():
            logits.append(gqakit.load(folder, dtype=torch.float32)(**made[-1]).logits)
    assert made[0].keys() == made[1].keys() >= {"input_ids", "pixel_values"}
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert torch.equal(*logits)
    made[1]["pixel_values"] = -made[1]["pixel_values"]
    with torch.inference_mode():
        assert not torch.equal(gqakit.load(out, dtype=torch.float32)(**made[1]).logits, logits[1])


IMAGES = {
    "llava": "CLIPImageProcessor",
    "gemma3": "Gemma3ImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "qwen2_vl": "Qwen2VLImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
    "mistral3": "PixtralImageProcessor",
}


@pytest.mark.parametrize("family", some(IMAGES))
def test_processors_without_a_class_in_files_of_their_own_are_found(family: str, tmp_path: Path) -> None:
    """As older checkpoints have them: a file for each part, and nothing in it says what it is for."""
    source = build_family(tmp_path / "source", family)
    tokenizer().save_pretrained(source)
    getattr(transformers, IMAGES[family])().save_pretrained(source)
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        strip(
            source / name,
            "image_processor_type",
            "feature_extractor_type",
            "processor_class",
            "tokenizer_class",
        )
    (source / "video_preprocessor_config.json").write_text('{"do_resize": true}')
    out = same(source)
    ours, theirs = (AutoImageProcessor.from_pretrained(path) for path in (out, source))
    assert type(ours) is type(theirs)
    assert ours.to_dict() == theirs.to_dict()
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (out, source))
    assert type(ours) is type(theirs)
    assert ours("a cat")["input_ids"] == theirs("a cat")["input_ids"]
    assert (out / "video_preprocessor_config.json").is_file()
