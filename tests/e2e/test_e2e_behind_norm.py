"""Keys merged behind their normalisation: exact where they can be, near the source elsewhere, and refused where not run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command import refused
from family_models import FAMILIES, VARIANTS, build_family, edit_layers, inputs_of, output_of, run
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

import gqakit
from gqakit.calibration.collect import collect_statistics
from gqakit.calibration.store import StatisticsFile, StatisticsHeader, save_statistics
from gqakit.conversion.checks import check_runtime
from gqakit.conversion.convert import convert_checkpoint
from gqakit.conversion.verify import verify
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES
from gqakit.data.batches import text_batches
from gqakit.models.load import use_attention_interface
from gqakit.models.remote_code import modeling
from gqakit.models.source import Source
from gqakit.pipeline import convert
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.measure import Bench, Prober
from gqakit.planning.make import plan
from gqakit.planning.plan import Plan

NORMED = [
    name
    for name, (family, changes) in VARIANTS.items()
    if FAMILIES[family].key_norm and FAMILIES[family].norm_switch in {None, *changes}
]
"""Every family, and those that normalise in some models only as they do."""
SAMPLED = ("qwen3", "gemma3_text", "olmo2", "stablelm_normed", "hunyuan_v1_dense")
"""One of each kind: a gain for all heads; heads before positions; over all heads; of each head; behind RoPE."""
CENTRED = ("stablelm_normed", "cohere_normed", "phi_normed")
"""Their normalisation takes out the mean of a head's channels, which turning must not bring back."""


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.matrix] + [pytest.mark.sample] * (name in SAMPLED))
        for name in NORMED
    ]
)
def family(request: pytest.FixtureRequest) -> str:
    """A family that normalises queries and keys."""
    return request.param


def bases(count: int) -> tuple[int, ...]:
    """The planted answer: which of half as many heads each KV head is a copy of."""
    return {8: (0, 1, 0, 2, 1, 1, 3, 0), 4: (0, 1, 1, 0)}[count]


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


def planted(folder: Path, family: str) -> Path:
    """A model whose KV heads are copies of half as many, each copy turned in its frequency pairs as its query heads are.

    Both channels of a pair have the same gain, so that turning commutes with the normalisation.
    """
    source = build_family(folder, family)
    spec = Source.open(source).spec
    first, second, free = spec.turning.indices
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if any(f".{norm}." in name for norm in spec.norms):
            gain = tensor.view(-1, spec.head_dim)  # a view: [heads or 1, d]
            gain[:, second] = gain[:, first]
            gain *= float(not name.endswith("bias"))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})

    def turned(projection: Projection, angles: Tensor) -> Projection:
        rows = projection.augmented().clone()  # [heads, d, D (+ 1)]
        if family in CENTRED:
            for part in (first, second, free):
                rows[:, part] -= rows[:, part].mean(1, keepdim=True) if len(part) else 0
        cos, sin = angles.cos()[..., None], angles.sin()[..., None]  # [heads, pairs or 1, 1]
        one, other = rows[:, first], rows[:, second]
        rows[:, first], rows[:, second] = cos * one - sin * other, sin * one + cos * other
        return projection.with_rows(rows)

    def copies(weights: AttentionWeights, _: Any) -> AttentionWeights:
        count = weights.num_kv_heads
        rng, heads = torch.Generator().manual_seed(1), torch.tensor(bases(count))
        angles = torch.rand(count, 1 if family in CENTRED else len(first), generator=rng) * 6.28
        query = turned(weights.query, angles.repeat_interleave(weights.num_heads // count, dim=0))
        key = turned(weights.key.select(heads), angles)
        return AttentionWeights(query, key, weights.value.select(heads), weights.output)

    edit_layers(source, family, copies)
    return source


def near_and_far(folder: Path, family: str) -> tuple[Tensor, Tensor]:
    """Logits at the first positions, and where half of the input follows thousands of positions later."""
    model: Any = gqakit.load(folder, dtype=torch.float32)
    inputs = inputs_of(family)
    places = torch.arange(20)
    far = places + 3000 * (places >= 10)
    return run(model, inputs), run(model, inputs, position_ids=far[None].expand(2, -1))


def test_turned_copies_of_heads_are_found_and_lose_nothing(family: str, tmp_path: Path) -> None:
    source = planted(tmp_path / "source", family)
    out = folded(source, "out")
    made = Plan.load(out / "gqakit-plan.json")
    for layer in made.layers:
        assert layer.key == Partition(bases(len(layer.key))).labels
        assert layer.key_error < 1e-5
    for expected, found in zip(near_and_far(source, family), near_and_far(out, family), strict=True):
        assert torch.allclose(found, expected, atol=2e-3 * float(expected.abs().max()))
    before = plan(source, kv_ratio=0.5, format="uniform", cardinality="arbitrary", progress=False)
    assert before.merging.key == "mean"
    assert min(layer.key_error for layer in before.layers) > 0.02  # before it they do lose


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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
for out in sys.argv[1:]:
    sees = "AutoModelForImageTextToText" in AutoConfig.from_pretrained(out, trust_remote_code=True).auto_map
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = auto.from_pretrained(out, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.save(model(torch.load(out + ".ids")).logits, out + ".logits")
"""


@pytest.fixture
def maps_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberately wrong runtime: the same maps, on what enters the normalisation."""

    class Wrong(NamedTuple):
        norm: Any

        def register_forward_hook(self, function: Any) -> None:
            self.norm.register_forward_pre_hook(lambda module, seen: function(module, seen, seen[0]))

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.norm, name, value)

    right = modeling.map_behind
    monkeypatch.setattr(modeling, "map_behind", lambda norm, *args: right(Wrong(norm), *args))


@pytest.mark.usefixtures("maps_before")
def test_verify_sees_that_maps_act_before_the_norm(family: str, tmp_path: Path) -> None:
    source = Source.open(build_family(tmp_path / "source", family))
    stock, batch = (
        gqakit.load(source.path, dtype=torch.float32),
        {"input_ids": inputs_of(family)["input_ids"][:1]},
    )
    assert check_runtime(source, stock, batch).passed
    assert check_runtime(source, stock, batch, behind_norm=True).passed is False


def complement(weights: AttentionWeights, spec: Any) -> AttentionWeights:
    """Every two KV heads have values alike, and keys in frequency pairs that the other leaves empty."""
    first, second, _ = spec.turning.indices
    twins = torch.arange(weights.num_kv_heads) // 2 * 2
    rows = weights.key.weight.clone()  # [heads, d, D]
    for head in range(len(rows)):
        empty = torch.arange(len(first)) % 2 == head % 2
        rows[head, first[empty]] = rows[head, second[empty]] = 0
    return AttentionWeights(weights.query, Projection(rows), weights.value.select(twins), weights.output)


@pytest.mark.parametrize("family", ["qwen3", "hunyuan_v1_dense"])
def test_only_behind_the_norm_do_heads_that_complement_each_other_fit_into_one(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The control: the same maps on what enters the normalisation lose the planted answer."""
    source = build_family(tmp_path / "source", family)
    edit_layers(source, family, complement)
    out, expected = folded(source, "out"), output_of(source, family)
    assert Plan.load(out / "gqakit-plan.json").layers[0].key == (0, 0, 1, 1, 2, 2, 3, 3)
    near = 1e-3 * float(expected.abs().max())
    assert torch.allclose(output_of(out, family), expected, atol=near)
    request.getfixturevalue("maps_before")
    assert not torch.allclose(output_of(out, family), expected, atol=30 * near)


@pytest.mark.parametrize(
    "families",
    [
        pytest.param(SAMPLED, id="sampled", marks=[pytest.mark.matrix, pytest.mark.sample]),
        pytest.param([name for name in NORMED if name not in SAMPLED], id="others", marks=pytest.mark.matrix),
    ],
)
def test_the_shipped_code_alone_computes_the_same(families: list[str], tmp_path: Path) -> None:
    """In one process without gqakit for all of them, as importing transformers takes longer than the rest."""
    for family in families:
        folded(build_family(tmp_path / family, family), f"grouped-{family}")
        torch.save(inputs_of(family)["input_ids"], f"grouped-{family}.ids")
    outs = [f"grouped-{family}" for family in families]
    subprocess.run([sys.executable, "-c", SHIPPED, *outs], check=True, capture_output=True)
    for family, out in zip(families, outs, strict=True):
        assert torch.allclose(torch.load(f"{out}.logits"), output_of(Path(out), family), atol=1e-5), family


def test_a_layer_loss_is_that_of_the_checkpoint_with_only_that_layer_converted(
    family: str, tmp_path: Path
) -> None:
    source = Source.open(build_family(tmp_path / "source", family))
    known = calibrated(source.path)
    windows = inputs_of(family)["input_ids"]
    bench = Bench("fold", text_batches(windows, cached=True), "cpu")
    prober = Prober(bench, LayerReader(source, known, behind_norm=True))
    count = source.spec.key_heads[0]
    made = plan(source.path, kv_heads=count // 2, statistics=known.path, format="grouped", progress=False)
    alone, chosen = Partition.identity(count).labels, Partition(bases(count)).labels
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
    for name in source.spec.norms:
        attention.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.__setitem__(name, out)
        )
    found = collect_statistics(model, source.spec, ids)[1]
    run(model, {"input_ids": ids})
    dim = source.spec.head_dim
    heads_first = seen[source.spec.norms[0]].shape[1] != 30  # positions
    queries, keys = (
        seen[name].transpose(1, 2) if heads_first else seen[name].reshape(2, 30, -1, dim)
        for name in source.spec.norms
    )
    flat = keys.reshape(60, -1).double()
    assert found.key is not None
    assert found.query_heads is not None
    assert torch.allclose(found.key, flat.T @ flat / 60, atol=1e-5)
    own = torch.einsum("btha,bthc->hac", queries.double(), queries.double()) / 60
    own = own.unflatten(0, (keys.shape[2], -1)).sum(1)  # of the query heads of each KV head
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


def measured_key_error(source: Path, made: Plan, known: StatisticsFile) -> float:
    """What keys that are merged before their normalisation differ from the source's behind it, on the calibration's tokens.

    Weighed by the queries that read them, and turned by all distances alike as the statistics of two channels of a pair do.
    """
    convert(source, "before", plan=made, statistics=known.path, progress=False)
    spec = Source.open(source).spec
    ids = torch.randint(4, 160, (16, 48), generator=torch.Generator().manual_seed(3))
    models: list[Any] = [gqakit.load(path, dtype=torch.float32) for path in (source, "before")]
    inputs: dict[int, Any] = {}
    errors = []
    for layer, planned in enumerate(made.layers):
        own, merged = (spec.attention_module(model, layer) for model in models)
        handle = own.register_forward_pre_hook(
            lambda module, args, kwargs, at=layer: inputs.update({at: kwargs["hidden_states"]}),
            with_kwargs=True,
        )
        run(models[0], {"input_ids": ids})
        handle.remove()
        with torch.inference_mode():
            source_keys, keys = (  # [tokens, heads, d]
                part.k_norm(part.k_proj(inputs[layer]).unflatten(-1, (-1, spec.head_dim)))
                .flatten(0, 1)
                .double()
                for part in (own, merged)
            )
        error = source_keys - keys[:, list(planned.key)]
        heads = LayerReader(Source.open(source), known, behind_norm=True)(layer).key
        lost, whole = (
            (heads.after_rope(torch.einsum("thd,the->hde", e, e) / len(e)) * heads.metric).sum()
            for e in (error, source_keys)
        )
        errors.append(float(lost / whole))
    return sum(errors) / len(errors)


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
    (note,) = uniform.notes
    assert "format=grouped" in note
    # What the note says of both ways is what they are: the error of the same groups behind the norm, and a larger one.
    stated = re.search(r"keys lose an estimated ([\d.]+) .*, and ([\d.]+) behind", note)
    assert stated is not None
    before, behind = map(float, stated.groups())
    read, fold = LayerReader(Source.open(source), known, behind_norm=True), RULES["fold"]
    exact = []
    for index, layer in enumerate(uniform.layers):
        heads = read(index).key
        lost = sum(fold.error(heads.select(group)) for group in layer.grouping.key.groups)
        exact.append(lost / float(heads.energy().sum()))
    assert behind == pytest.approx(sum(exact) / len(exact), rel=1e-2)
    assert before > behind
    assert before == pytest.approx(measured_key_error(source, uniform, known), rel=0.2)


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
    for target in ("uniform", "gguf", "onnx"):
        refused(2, "export", out, "--to", target, "-o", "exported", says=("behind their normalisation",))
