"""Keys merged behind their normalisation: exact where they can be, near the source elsewhere, and refused where not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import refused
from family_models import HEADS, build_family, edit_layers, inputs_of, output_of, run
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

import gqakit
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.store import StatisticsFile, StatisticsHeader, save_statistics
from gqakit.conversion.convert import convert_checkpoint
from gqakit.conversion.verify import verify
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.grouping import Partition
from gqakit.data.batches import text_batches
from gqakit.models.load import use_attention_interface
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.measure import Bench, Prober
from gqakit.planning.make import plan
from gqakit.planning.plan import Plan

FAMILIES = ["qwen3", "gemma3_text", "olmo2"]
BASES = (0, 1, 0, 2, 1, 1, 3, 0)
"""The planted answer: which of four heads each KV head is a copy of."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """A family that normalises queries and keys."""
    return request.param


def calibrated(source: Path) -> StatisticsFile:
    """Statistics on random tokens."""
    opened = Source.open(source)
    model = gqakit.load(source, dtype=torch.float32)
    use_attention_interface(model, opened.spec)
    rng = torch.Generator().manual_seed(3)
    windows = torch.randint(4, 160, (16, 48), generator=rng)
    layers = collect_statistics(model, opened.spec, windows)
    header = StatisticsHeader(
        source=str(source),
        fingerprint=opened.fingerprint,
        num_layers=opened.spec.num_layers,
        width=opened.spec.hidden_size,
        tokens=windows.numel(),
        tokens_asked=windows.numel(),
        window=48,
        text="random",
        text_sha256="",
    )
    return save_statistics(source.with_name(source.name + ".statistics.safetensors"), header, layers)


def folded(source: Path, out: str, ratio: float = 0.5, **options: Any) -> Path:
    """A conversion with keys folded behind their normalisation."""
    known = calibrated(source)
    made = plan(
        source, kv_ratio=ratio, statistics=known.path, allocation="uniform", progress=False, **options
    )
    assert made.merging.behind_norm
    assert made.format == "grouped"
    convert(source, out, plan=made, statistics=known.path, progress=False)
    return Path(out)


def copies(weights: AttentionWeights, spec: Any) -> AttentionWeights:
    """KV heads that are copies of four, each copy turned in its frequency pairs as its query heads are."""
    heads, dim = torch.tensor(BASES), spec.head_dim
    rng = torch.Generator().manual_seed(1)
    angle = torch.rand(HEADS, dim // 2, generator=rng) * 6.28

    def turned(projection: Projection, angles: Tensor) -> Projection:
        first, second = projection.weight.chunk(2, dim=1)  # [heads, pairs, D]
        cos, sin = angles.cos()[..., None], angles.sin()[..., None]
        weight = torch.cat([cos * first - sin * second, sin * first + cos * second], dim=1)
        return Projection(weight, None, projection.gain)

    of_query = angle.repeat_interleave(weights.num_heads // HEADS, dim=0)
    key, query = weights.key.select(heads), turned(weights.query, of_query)
    return AttentionWeights(query, turned(key, angle), weights.value.select(heads), weights.output)


def even_gains(folder: Path) -> None:
    """The same gain for both channels of a pair and in every head, so that turning commutes with the normalisation."""
    tensors = load_file(folder / "model.safetensors")
    for name, gain in tensors.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            pairs = gain[: len(gain) // 2] if len(gain) <= 16 else gain[:4]
            dim = len(gain) if len(gain) <= 16 else 8
            tensors[name] = pairs.repeat(2).repeat(len(gain) // dim).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_turned_copies_of_heads_are_found_and_lose_nothing(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    even_gains(source)
    edit_layers(source, family, copies)
    out = folded(source, "out")
    made = Plan.load(out / "gqakit-plan.json")
    for layer in made.layers:
        assert layer.key == Partition(BASES).labels
        assert layer.key_error < 1e-5
    expected = output_of(source, family)
    near = 2e-3 * float(expected.abs().max())
    assert torch.allclose(output_of(out, family), expected, atol=near)
    before = plan(source, kv_ratio=0.5, format="uniform", cardinality="arbitrary", progress=False)
    assert before.merging.key == "mean"
    assert min(layer.key_error for layer in before.layers) > 0.05  # before it they do lose


def test_saved_verified_cached_and_padded(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    out = folded(source, "out", 0.6, kv_maps="separate")
    batch = {"input_ids": inputs_of(family)["input_ids"][:1], "use_cache": False}
    found = verify(str(source), str(out), batch)
    assert found.passed, [check for check in found.checks if not check.passed]
    model: Any = gqakit.load(out, dtype=torch.float32)
    whole = output_of(out, family)
    model.save_pretrained("again")
    assert torch.equal(output_of(Path("again"), family), whole)
    near = 1e-4 * float(whole.abs().max())
    ids, cache, steps = inputs_of(family)["input_ids"], None, []
    with torch.inference_mode():
        for start, end in ((0, 12), (12, 13), (13, 20)):
            made = model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            steps.append(made.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=near)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=None)
    padded = torch.cat([torch.zeros(2, 3, dtype=ids.dtype), ids[:, :8]], dim=1)
    mask = (torch.arange(11) >= 3).long().expand(2, -1)
    plain = model.generate(ids[:, :8], max_new_tokens=4, do_sample=False)
    left = model.generate(padded, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert plain[:, 8:].tolist() == left[:, 11:].tolist()


SHIPPED = """
import sys
sys.modules["gqakit"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True, dtype=torch.float32).eval()
with torch.inference_mode():
    torch.save(model(torch.load("ids.pt")).logits, "logits.pt")
"""


def test_the_shipped_code_alone_computes_the_same(family: str, tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", family)
    out = folded(source, "out")
    torch.save(inputs_of(family)["input_ids"], "ids.pt")
    subprocess.run([sys.executable, "-c", SHIPPED], check=True, capture_output=True)
    assert torch.allclose(torch.load("logits.pt"), output_of(out, family), atol=1e-5)


def test_a_layer_loss_is_that_of_the_checkpoint_with_only_that_layer_converted(
    family: str, tmp_path: Path
) -> None:
    source = Source.open(build_family(tmp_path / "source", family))
    known = calibrated(source.path)
    windows = inputs_of(family)["input_ids"]
    bench = Bench(
        source.path, known.path, "fold", text_batches(windows, cached=True), source.spec.stacks, "cpu", 0
    )
    prober = Prober(bench, LayerReader(source, known, behind_norm=True))
    made = plan(source.path, kv_heads=4, statistics=known.path, format="grouped", progress=False)
    alone, chosen = Partition.identity(HEADS).labels, Partition(BASES).labels
    layers = [each.model_copy(update={"key": alone, "value": alone}) for each in made.layers]
    layers[1] = layers[1].model_copy(update={"key": chosen, "value": chosen})
    one = made.model_copy(update={"layers": tuple(layers)})
    convert_checkpoint(source, one, known, Path("one"), "")
    ((_, loss),) = prober.measure(1, [(1, "both", chosen)])
    logp, logq = (output_of(path, family).log_softmax(-1) for path in (source.path, Path("one")))
    assert loss == pytest.approx(float((logp.exp() * (logp - logq)).sum(-1).double().mean()), rel=1e-3)
    assert loss > 1e-4


def test_statistics_are_those_of_what_leaves_the_norms(family: str, tmp_path: Path) -> None:
    source = Source.open(build_family(tmp_path / "source", family))
    model: Any = gqakit.load(source.path, dtype=torch.float32)
    use_attention_interface(model, source.spec)
    ids = inputs_of(family, 30)["input_ids"]
    seen: dict[str, Tensor] = {}
    attention = source.spec.attention_module(model, 1)
    for name in ("q_norm", "k_norm"):
        attention.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.__setitem__(name, out)
        )
    found = collect_statistics(model, source.spec, ids)[1]
    run(model, {"input_ids": ids})
    dim = source.spec.head_dim
    keys, queries = (
        seen[name].transpose(1, 2) if family == "gemma3_text" else seen[name].reshape(2, 30, -1, dim)
        for name in ("k_norm", "q_norm")
    )
    flat = keys.reshape(60, -1).double()
    assert found.key is not None
    assert found.query_heads is not None
    assert torch.allclose(found.key, flat.T @ flat / 60, atol=1e-5)
    own = torch.einsum("btha,bthc->hac", queries.double(), queries.double()) / 60
    assert torch.allclose(found.query_heads, own, atol=1e-4)
    assert found.distances is not None
    assert found.frequencies is not None


def test_each_layer_has_the_frequencies_of_its_own_type(tmp_path: Path) -> None:
    import transformers

    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        vocab_size=160, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=16, head_dim=8, sliding_window=8, layer_types=kinds,
    )  # fmt: skip
    transformers.Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    source = Source.open(tmp_path)
    model = gqakit.load(tmp_path, dtype=torch.float32)
    use_attention_interface(model, source.spec)
    found = collect_statistics(model, source.spec, torch.arange(4, 44)[None])
    for layer, kind in enumerate(kinds):
        theta = config.rope_parameters[kind]["rope_theta"]
        expected = theta ** -(torch.arange(0, 8, 2).double() / 8)
        assert torch.allclose(found[layer].frequencies, expected)


def test_where_keys_stay_before_the_norm(tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", "qwen3")
    known = calibrated(source)
    for options in (
        {"statistics": known.path, "format": "uniform"},
        {"statistics": known.path, "merge": "mean", "format": "grouped"},
        {"statistics": known.path, "engine": "sglang", "format": "uniform"},
        {"format": "grouped"},  # from weights
    ):
        made = plan(source, kv_heads=4, progress=False, **options)
        assert made.merging.key == "mean", options
        assert "behind_norm" not in json.loads(made.to_json())["merging"]
    uniform = plan(source, kv_heads=4, statistics=known.path, format="uniform", progress=False)
    assert "format=grouped" in uniform.notes[0]


def test_statistics_from_before_there_were_any_of_keys_are_read(tmp_path: Path) -> None:
    source = build_family(tmp_path / "source", "qwen3")
    known = calibrated(source)
    tensors = load_file(known.path)
    kept = {n: t for n, t in tensors.items() if not n.endswith((".key", ".query_heads"))}
    metadata = {"gqakit_moments": known.header.model_dump_json()}
    save_file(kept, known.path, metadata=metadata)
    assert plan(source, kv_heads=4, statistics=known.path, progress=False).merging.key == "mean"


def test_other_engines_are_refused_in_one_line(tmp_path: Path) -> None:
    out = folded(build_family(tmp_path / "source", "qwen3"), "out")
    made = Plan.load(out / "gqakit-plan.json")
    assert made.engines.startswith("transformers")
    with pytest.raises(gqakit.errors.UsageError, match="behind their normalisation"):
        made.check_engine("vllm")
    for target in ("uniform", "gguf"):
        refused(2, "export", out, "--to", target, "-o", "exported", says=("behind their normalisation",))
