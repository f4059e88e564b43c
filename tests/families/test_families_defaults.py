"""What a config leaves out is what transformers takes for it; what transformers refuses is said in one line."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import gqakit
from gqakit.errors import CheckpointError, FamilyError
from gqakit.models.defaults import needs_defaults, with_defaults
from gqakit.models.source import Source

SMALL = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 32}


def saved(folder: Path, kind: str, changes: dict, **config) -> Path:
    """A small model, and its config.json with some keys changed; None leaves one out."""
    made = getattr(transformers, f"{kind}Config")(**SMALL, **config)
    getattr(transformers, f"{kind}ForCausalLM")(made).save_pretrained(folder)
    data = {**json.loads((folder / "config.json").read_text()), **changes}
    text = json.dumps({key: value for key, value in data.items() if value is not None})
    (folder / "config.json").write_text(text)
    return folder


def test_numbers_of_heads_that_a_config_leaves_out(tmp_path):
    mistral = saved(tmp_path / "m", "Mistral", {"num_key_value_heads": None}, num_attention_heads=16)
    assert Source.open(mistral).spec.key_heads == (8, 8)
    qwen = saved(tmp_path / "q", "Qwen3", {"head_dim": None}, num_attention_heads=2, num_key_value_heads=2)
    assert Source.open(qwen).spec.head_dim == 128


def test_stacks_that_differ_in_their_heads_are_taken_apart(tmp_path):
    """Whisper's sides may: what is not converted then is not calibrated either."""
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    config = transformers.WhisperConfig(
        **sizes, vocab_size=64, encoder_attention_heads=2, decoder_attention_heads=4, pad_token_id=0
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    source = Source.open(tmp_path)
    assert source.with_all_stacks().spec.stacks == ("decoder", "cross")
    assert Source.open(tmp_path, ["encoder"]).with_all_stacks().spec.stacks == ("encoder",)
    with pytest.raises(FamilyError, match="one stack at a time"):
        source.with_stacks(["encoder", "decoder"])


def test_a_stack_that_is_not_understood_is_not_left_out_in_silence(tmp_path):
    """Nor is a decoder taken whose encoder is not there."""
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads"), 2)
    sizes |= {"decoder_attention_heads": 2, "d_model": 32, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = transformers.WhisperConfig(**sizes, vocab_size=64, pad_token_id=0)
    whisper = transformers.WhisperForConditionalGeneration(config)
    whisper.save_pretrained(tmp_path)
    assert Source.open(tmp_path).with_all_stacks().spec.stacks == ("encoder", "decoder", "cross")
    whole = load_file(tmp_path / "model.safetensors")

    def save(tensors):
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})

    save({**whole, "model.encoder.layers.1.self_attn.sinks": torch.ones(2)})
    source = Source.open(tmp_path)
    assert source.spec.stacks == ("decoder", "cross")
    with pytest.raises(FamilyError, match=r"encoder\.layers\.1\.self_attn\.sinks"):
        source.with_all_stacks()
    save(
        {name: tensor for name, tensor in whole.items() if "encoder.layers" not in name or "decoder" in name}
    )
    with pytest.raises(FamilyError, match="a decoder without its encoder"):
        Source.open(tmp_path)


def test_what_is_stated_stays_as_it_is_stated():
    config = {**SMALL, "model_type": "gqakit_llama", "rms_norm_eps": 0.1, "own": 1}
    full = with_defaults(config)
    assert config.items() <= full.items()
    assert (full["num_attention_heads"], full["max_position_embeddings"]) == (32, 2048)
    assert needs_defaults(config)
    assert not needs_defaults({"model_type": "strange"})


def test_a_config_that_transformers_refuses_is_one_line(tmp_path):
    with pytest.raises(FamilyError, match=r"transformers refuses it .*not a multiple") as caught:
        with_defaults({"model_type": "llama", **SMALL, "num_attention_heads": 6})
    assert "\n" not in str(caught.value)
    changes = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "sliding_window": None}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}
    pruned = saved(tmp_path / "pruned", "Mistral", changes, **heads)
    assert Source.open(pruned).spec.num_heads == 6
    with pytest.raises(CheckpointError, match="does not load it") as caught:
        gqakit.load(pruned)
    assert "\n" not in str(caught.value)


def test_an_index_without_metadata_is_one_line_that_says_what_to_add(tmp_path):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    folder = saved(tmp_path / "m", "Llama", {}, **heads)
    tensors = gqakit.load(folder).state_dict()
    (folder / "model.safetensors").unlink()
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "a.safetensors", {"format": "pt"}
    )
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r'has no "metadata".*add "metadata": \{\}'):
        gqakit.load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, **index}))
    assert torch.equal(gqakit.load(folder).state_dict()["model.norm.weight"], tensors["model.norm.weight"])
