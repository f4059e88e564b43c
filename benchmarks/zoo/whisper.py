"""Whisper out of a CTranslate2 `model.bin`."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")


def unpack_whisper(files: dict[str, bytes], target: Path) -> None:
    """Save a Whisper model as a Hugging Face directory; a `model.bin` in parts is joined in order of their names."""
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
    from transformers import WhisperForConditionalGeneration as Whisper

    parts = sorted(name for name in files if name.startswith("model.bin"))
    tensors = read_ctranslate2(b"".join(files[name] for name in parts))
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    layers = sum(name.endswith("self_attention/linear_0/weight") for name in tensors) // 2
    english = vocabulary == 51864
    end, start = (50256, 50257) if english else (50257, 50258)
    heads = width // 64
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    model = Whisper(config)
    loaded = model.load_state_dict(_renamed(tensors, layers, width), strict=False)
    left = set(loaded.missing_keys) - {"proj_out.weight"}
    if left or loaded.unexpected_keys:
        raise ValueError(
            f"model.bin does not fill a Whisper: {sorted(left)[:3]}, {loaded.unexpected_keys[:3]}"
        )
    model.save_pretrained(target)
    tokenizer = target / "tokenizer.json"
    tokenizer.write_bytes(files["tokenizer.json"])
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(target)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(target)
    # English, transcription, no timestamps: what the decoder is begun with.
    forced = [50362] if english else [50259, 50359, 50363]
    settings = target / "generation_config.json"
    told = json.loads(settings.read_text(encoding="utf-8"))
    told["forced_decoder_ids"] = [[at, token] for at, token in enumerate(forced, start=1)]
    settings.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _renamed(tensors: dict[str, Tensor], layers: int, width: int) -> dict[str, Tensor]:
    """The tensors under the names that transformers has for them."""
    found: dict[str, Tensor] = {}

    def norm(name: str, source: str) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = tensors[f"{source}/gamma"], tensors[f"{source}/beta"]

    def linear(name: str, source: str, part: int | None = None) -> None:
        for kind in ("weight", "bias"):
            whole = tensors[f"{source}/{kind}"]
            if part is not None:
                whole = whole[part * width : (part + 1) * width]
            if not (kind == "bias" and name.endswith("k_proj")):  # stored, but always zero
                found[f"{name}.{kind}"] = whole.clone()

    for side in ("encoder", "decoder"):
        for index in range(layers):
            at, to = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
                linear(f"{to}.self_attn.{name}", f"{at}/self_attention/linear_0", part)
            linear(f"{to}.self_attn.out_proj", f"{at}/self_attention/linear_1")
            norm(f"{to}.self_attn_layer_norm", f"{at}/self_attention/layer_norm")
            if side == "decoder":
                linear(f"{to}.encoder_attn.q_proj", f"{at}/attention/linear_0")
                for part, name in enumerate(("k_proj", "v_proj")):
                    linear(f"{to}.encoder_attn.{name}", f"{at}/attention/linear_1", part)
                linear(f"{to}.encoder_attn.out_proj", f"{at}/attention/linear_2")
                norm(f"{to}.encoder_attn_layer_norm", f"{at}/attention/layer_norm")
            linear(f"{to}.fc1", f"{at}/ffn/linear_0")
            linear(f"{to}.fc2", f"{at}/ffn/linear_1")
            norm(f"{to}.final_layer_norm", f"{at}/ffn/layer_norm")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        found[f"model.{side}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"]
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"model.encoder.{name}.{kind}"] = tensors[f"encoder/{name}/{kind}"]
    found["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    return found


def read_ctranslate2(data: bytes) -> dict[str, Tensor]:
    """The floating-point tensors of a CTranslate2 `model.bin`, in float32.

    A header (format version, name of the specification, its revision), then each variable: name, rank, dimensions,
    type, length in bytes, data. Numbers are little-endian; names carry their length and end with a zero byte.
    """
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    _ = number("I"), text(), number("I")  # the header says nothing that is needed
    tensors: dict[str, Tensor] = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind = np.dtype(_TYPES[number("B")])
        size = number("I")
        if kind.kind == "f":
            values = np.frombuffer(data, kind, size // kind.itemsize, at).astype(np.float32)
            tensors[name] = torch.from_numpy(values.reshape(shape))
        at += size
    return tensors
