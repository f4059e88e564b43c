"""Checkpoints as they lie about: what transformers runs is converted exactly, all else is refused in one line.

Every second KV head of the model is the one before it, so half of them compute what transformers' own code computes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import refused
from safetensors.torch import load_file, save_file
from tiny_models import build, edit_json, edit_tensors, prompt_ids
from transformers import AutoModelForCausalLM

import gqakit

Change = Callable[[Path], Any]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("twins") / "model", dtype=torch.float32)

    def pair(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "k_proj" in name or "v_proj" in name:
                heads = tensors[name].unflatten(0, (8, -1))  # [KV heads, head_dim, width]
                tensors[name] = heads[torch.arange(8) // 2 * 2].flatten(0, 1)

    edit_tensors(folder, pair)
    return folder


def config(**changes: Any) -> Change:
    """Keys of config.json changed; None takes one out."""
    return lambda folder: edit_json(folder / CONFIG, **changes)


def rope(**keys: Any) -> Change:
    """The rotary embedding as releases before transformers 5 wrote it."""
    return lambda folder: edit_json(folder / CONFIG, rope_parameters=None, **keys)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    return lambda folder: edit_tensors(folder, change)


def renamed(prefix: str) -> Change:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[prefix + name] = state.pop(name)

    return tensors(change)


def moved(name: str) -> Change:
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def marked(name: str) -> Change:
    """A file behind a byte order mark, as some editors of Windows save it."""
    return lambda folder: (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())


def sharded(folder: Path, variant: str = "") -> None:
    """Two shards and their index, of a variant if one is named."""
    whole = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    dot = f".{variant}" if variant else ""
    names = [f"model{dot}-{n:05}-of-00002.safetensors" for n in (1, 2)]
    placed = {tensor: names[".layers.2." in tensor] for tensor in whole}
    for shard in names:
        save_file({n: whole[n] for n in whole if placed[n] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 3}, "weight_map": placed}  # a wrong size, which nothing reads
    (folder / f"model.safetensors.index{dot}.json").write_text(json.dumps(index))


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}')
    save_file({"x.lora_A.weight": torch.ones(2, 32)}, folder / "adapter_model.safetensors")


def hub_cache(folder: Path) -> None:
    """As a download leaves it: every file is a link into `blobs`, two folders above."""
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path(os.path.relpath(blobs / str(number), folder)))


def other_weights(folder: Path) -> None:
    zeros = {name: 0 * value for name, value in load_file(folder / WEIGHTS).items()}
    save_file(zeros, folder / "other.safetensors", {"format": "pt"})
    edit_json(folder / CONFIG, transformers_weights="other.safetensors")


def bias(state: dict[str, torch.Tensor]) -> None:
    for layer in range(4):
        state[f"model.layers.{layer}.self_attn.k_proj.bias"] = torch.ones(32)


def codes(state: dict[str, torch.Tensor]) -> None:
    """GPTQ's tensors, of which no config tells."""
    weight = state.pop("model.layers.0.self_attn.q_proj.weight")
    for part, shape in (("qweight", (4, 32)), ("qzeros", (1, 4)), ("scales", (1, 32)), ("g_idx", (32,))):
        dtype = weight.dtype if part == "scales" else torch.int32
        state[f"model.layers.0.self_attn.q_proj.{part}"] = torch.ones(shape, dtype=dtype)


def beside(name: str, *shape: int) -> Change:
    return tensors(lambda state: state.update({f"model.layers.1.{name}": torch.ones(shape)}))


def own_code(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("raise SystemExit('this is not to be run')\n")
    edit_json(folder / CONFIG, auto_map={"AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"})


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CONVERTED: dict[str, Change] = {
    "theta beside": rope(rope_theta=500000),
    "linear": rope(rope_scaling={"type": "linear", "factor": 4}),
    "yarn": rope(rope_theta=1e4, rope_scaling=YARN),
    "no rope at all": rope(),
    "torch_dtype, no KV heads": config(dtype=None, torch_dtype="bfloat16", num_key_value_heads=None),
    "NaN in the config": config(comment=float("nan"), quantization_config=None),
    "shards": sharded,
    "positions that see later ones": config(is_causal=False),
    "model code of its own": own_code,
    "double precision and stored frequencies": tensors(
        lambda state: state.update(
            {name: value.double() for name, value in state.items()}
            | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
        )
    ),
    "a hub's cache": hub_cache,
    "pickled weights and an old index beside": lambda folder: [
        (folder / name).write_text("{}") for name in ("pytorch_model.bin", INDEX)
    ],
    "named without the base model": tensors(
        lambda state: [state.update({n.removeprefix("model."): state.pop(n)}) for n in list(state)]
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", CONVERTED)
def test_what_transformers_runs_is_converted_exactly(
    name: str, twins: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Path(shutil.copytree(twins, tmp_path / "ein Modell é 模型" / "snapshots" / "1a2b"))
    CONVERTED[name](source)
    options = {"method": "neighbour", "merge": "mean", "format": "grouped", "progress": False}
    gqakit.convert(source, "out", plan=gqakit.plan(source, kv_ratio=0.5, **options), progress=False)
    if "NaN" in name:  # `verify` compares configs, and NaN equals nothing
        assert gqakit.verify(source, "out", progress=False).passed
    stock = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    made = gqakit.load("out", dtype=torch.float32)
    assert torch.equal(made(prompt_ids()).logits, stock(prompt_ids()).logits)
    assert (caplog.text.count("modeling_own.LlamaForCausalLM") > 0) == (CONVERTED[name] is own_code)


def quantised(method: str, says: str) -> tuple[Change, int, tuple[str, ...]]:
    return config(quantization_config={"quant_method": method}), 3, (f"method {method}", says)


BASE = "Convert the model that it was quantised from"
REFUSED: dict[str, tuple[Change, int, tuple[str, ...]]] = {
    "gptq": quantised("gptq", BASE),
    "awq": quantised("awq", BASE),
    "bitsandbytes": quantised("bitsandbytes", "model.dequantize()"),
    "fp8": quantised("fp8", "FineGrainedFP8Config(dequantize=True)"),
    "compressed": quantised("compressed-tensors", "CompressedTensorsConfig(dequantize=True)"),
    "quantised by nothing": (config(quantization_config={}), 3, ("Remove the empty entry",)),
    "float8": (
        tensors(lambda s: s.update({"model.x.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)})),
        3,
        ("F8_E4M3", BASE),
    ),
    "adapter beside": (adapter, 3, ("PEFT adapter beside its weights", "merge_and_unload")),
    "other weights named": (other_weights, 3, ("'other.safetensors'", "transformers_weights")),
    "variant": (moved("model.fp16.safetensors"), 3, ("'fp16'", "variant='fp16'")),
    "variant in shards": (lambda folder: sharded(folder, "bf16"), 3, ("'bf16'",)),
    "one folder up": (
        lambda folder: (
            shutil.copytree(folder, folder.with_name("inner")).rename(folder / "inner")
            and [path.unlink() for path in folder.iterdir() if path.is_file()]
        ),
        3,
        ("The model may be", "inner"),
    ),
    "config marked": (marked(CONFIG), 3, ("byte order mark",)),
    "tokenizer marked": (marked("tokenizer_config.json"), 3, ("no tokenizer that loads", "BOM")),
    "distributed": (renamed("module."), 4, ("'module.'", "not what wraps it")),
    "compiled": (renamed("_orig_mod."), 4, ("'_orig_mod.'",)),
    "adapter saved whole": (renamed("base_model.model."), 4, ("'base_model.model.'",)),
    "no model_type": (config(model_type=None), 4, ("no model_type",)),
    "model_type misspelt": (config(model_type="LLaMA"), 4, ("Did you mean 'llama'",)),
    "a tensor short": (
        tensors(lambda s: s.pop("model.layers.1.mlp.up_proj.weight")),
        3,
        ("model.layers.1.mlp.up_proj.weight", "incomplete"),
    ),
    "no output matrix": (tensors(lambda s: s.pop("lm_head.weight")), 3, ("lm_head.weight",)),
    "resized embeddings": (config(vocab_size=140), 3, ("[128, 32], expected [140, 32]",)),
    "codes of which no config tells": (tensors(codes), 3, ("q_proj.qweight", BASE)),
    "a scale of codes": (beside("self_attn.k_proj.weight_scale", 1), 4, ("k_proj.weight_scale",)),
    "state of bitsandbytes": (beside("self_attn.v_proj.weight.absmax", 8), 4, ("weight.absmax",)),
    "what an adapter left": (
        beside("self_attn.q_proj.lora_A.default.weight", 2, 32),
        4,
        ("q_proj.lora_A.default.weight",),
    ),
    "a gate beside attention": (beside("attn_gate.weight", 1, 32), 4, ("attn_gate.weight", "no place")),
    "biases that nothing adds": (tensors(bias), 4, ("k_proj.bias", "does not add")),
    "biases that nothing stores": (config(attention_bias=True), 3, ("k_proj.bias", "missing")),
    "dtype misspelt": (config(dtype="float7"), 3, ("float7",)),
    "unknown rope": (rope(rope_scaling={"type": "su", "factor": 2.0}), 3, ("'su'",)),
    "flash attention": (config(_attn_implementation="flash_attention_2"), 3, ("FlashAttention2",)),
    "unknown class": (config(architectures=["LlamaForRewardModel"]), 4, ("LlamaForRewardModel",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_in_one_line(name: str, twins: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(twins, tmp_path / "model"))
    change, code, says = REFUSED[name]
    change(source)
    said = refused(code, "convert", source, "-o", "out", "--kv-ratio", "0.5", "--no-evaluate", says=says)
    if name != "tokenizer marked":  # a plan from weights alone reads no text
        assert refused(code, "plan", source, "-o", "plan.json", "--kv-ratio", "0.5") == said


def test_outputs_are_named_whatever_the_config_says(twins: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(twins, tmp_path / "model"))
    edit_json(source / CONFIG, return_dict=False)
    assert gqakit.load(source)(prompt_ids()).logits.shape[-1] == 128
