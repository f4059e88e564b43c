"""Tiny random checkpoints of every family with a tokenizer, as a user would have them on disk."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

LAYERS, HEADS, HIDDEN, VOCAB = 4, 8, 32, 128
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 8, "sliding_window": None},  # heads x width is 64, not the hidden size
    "qwen2": {},  # biases on q, k and v
    "qwen3": {"head_dim": 8},  # q and k are normalised
    "phi3": {"original_max_position_embeddings": 256},  # fused projections
    "mixtral": {"head_dim": 8, "sliding_window": None, "num_local_experts": 2},
}
CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n\n# The card of the source\n"
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over the bundled text; every text opens with BOS."""
    from tokenizers.processors import TemplateProcessing

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    text = files("gqakit").joinpath("data", "assets", "calibration.txt").read_text(encoding="utf-8")
    inner.train_from_iterator(text[:20_000].splitlines(keepends=True), trainer)
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        chat_template=CHAT,
    )


def build(
    folder: Path,
    family: str = "llama",
    *,
    kv_heads: int = HEADS,
    dtype: torch.dtype = torch.float32,
    sharded: bool = False,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Save a random model of a family, with tokenizer, generation config, licence and card."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, **{**COMMON, **FAMILIES[family], "num_key_value_heads": kv_heads, **changes}
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": "30KB"} if sharded else {}))
    tokenizer().save_pretrained(folder)
    (folder / "LICENSE").write_text("You may.\n")
    (folder / "README.md").write_text(CARD)
    return folder


def edit_tensors(folder: Path, change: Any) -> None:
    """Rewrite a single-file checkpoint's tensors: `change` gets the dict and changes it in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data, indent=2))


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, sharded or not."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a directory, by relative name; directories count too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def prompt_ids(length: int = 24) -> torch.Tensor:
    """Token ids of some text, `[1, length]`."""
    ids = tokenizer()("The best way to learn how to cook is to cook for other people. " * 3)["input_ids"]
    return torch.tensor(ids[:length])[None]


@torch.inference_mode()
def logits(folder: Path, length: int = 24) -> torch.Tensor:
    """Logits of a checkpoint in float32 on `prompt_ids`."""
    import gqakit

    return gqakit.load(folder, dtype=torch.float32)(input_ids=prompt_ids(length)).logits[0]
