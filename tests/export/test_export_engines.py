"""What engines take: plans are refused before any work, and docs/serving.md says what the table does."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from command import gqakit, refused, succeeds
from export_fixtures import APART, UNEQUAL, plan_of
from transformers import QuantizedCache

from gqakit.errors import UsageError
from gqakit.exporters import nemotron_nas, onnx_graph, uniform
from gqakit.exporters.gguf_model import PER_LAYER_ARCHITECTURE, STOCK_ARCHITECTURE
from gqakit.models.engine_caches import ENGINE_CACHES, FULL, offered, serving
from gqakit.models.engines import ENGINES, Engine, check_engine, markdown
from gqakit.models.families import FAMILIES
from gqakit.models.vllm.plugin import MODELS

Models = Callable[..., Path]
SERVING = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.mark.parametrize("command", ["plan", "convert"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--for", "sglang"], ["--format uniform", "auto"]),
        (["--for", "sglang", "--format", "grouped"], ["--format uniform", "transformers"]),
    ],
)
def test_a_plan_that_the_engine_cannot_take_is_refused(
    model: Models, command: str, options: list[str], says: list[str]
) -> None:
    refused(2, command, model(), "--kv-ratio", "0.5", "-o", "out", *options, says=tuple(says))


def test_the_family_counts(model: Models) -> None:
    some = ("--kv-ratio", "0.5", "--method", "neighbour", "--merge", "mean", "-o", "plan.json")
    says = ("grouped qwen3 with an output matrix beside its embeddings", "--format uniform")
    refused(2, "plan", model("qwen3"), *some, "--for", "llama.cpp", says=says)
    succeeds("plan", model("qwen3", tie_word_embeddings=True), *some, "--for", "llama.cpp")
    refused(
        2, "plan", model("mixtral"), *some, "--for", "llama.cpp", says=("grouped mixtral", "--format uniform")
    )


def test_a_plan_that_fits_passes(model: Models) -> None:
    some = ("--kv-ratio", "0.5", "--method", "neighbour", "--merge", "mean")
    succeeds("plan", model(), *some, "--for", "sglang", "--format", "uniform", "-o", "uniform.json")
    succeeds("plan", model(), *some, "--for", "llama.cpp", "-o", "any.json")


def test_a_plan_that_is_given_is_looked_at(model: Models) -> None:
    source = model("llama", num_attention_heads=9, kv_heads=9, hidden_size=72)
    plan_of(source, UNEQUAL).save(Path("unequal.json"))
    refused(2, "convert", source, "--plan", "unequal.json", "--for", "sglang", "-o", "out", says=("uniform",))
    succeeds("convert", source, "--plan", "unequal.json", "--for", "vllm", "--dry-run", "-o", "out")
    shown = succeeds("plan", "show", "unequal.json").out
    assert "transformers, llama.cpp, vllm, onnx" in shown
    plan_of(source, APART).save(Path("apart.json"))
    assert (
        "no engine but transformers keeps keys and values apart" in succeeds("plan", "show", "apart.json").out
    )


def test_only_what_a_family_can_become_is_advised() -> None:
    with pytest.raises(
        UsageError, match=r"What fits: nothing that bert can become\. Engines that can: transf"
    ):
        check_engine("vllm", ("uniform", "grouped"), separate=False, family="bert")


def test_uniform_goes_everywhere() -> None:
    for name in ENGINES:
        check_engine(name, ("uniform",), separate=False, family="qwen3")


def test_separate_maps_may_be_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    only = Engine("some", "as it is", "as it is", None, None, "not run")
    monkeypatch.setitem(ENGINES, "some", only)
    with pytest.raises(UsageError, match="`kv_maps=shared`"):
        check_engine("some", ("grouped",), separate=True)


def test_an_unknown_engine_is_answered_with_those_that_are_known(model: Models) -> None:
    ran = gqakit("plan", model(), "--kv-ratio", "0.5", "-o", "out", "--for", "sgl")
    assert ran.code == 2
    assert all(name in ran.err for name in ENGINES)


def test_serving_holds_the_table_and_a_section_for_each_engine() -> None:
    text = SERVING.read_text("utf-8")
    assert markdown() in text, "docs/serving.md: paste the output of gqakit.models.engines.markdown()"
    for name in ENGINES:
        assert f"\n## {name}" in text


def test_engines_are_claimed_for_the_families_that_their_code_knows() -> None:
    """`ENGINES` is what plans, docs/families.md and docs/serving.md say; these are what writes and runs the files."""
    known = {
        "llama.cpp": STOCK_ARCHITECTURE,
        "vllm": MODELS,
        "mlx-lm": nemotron_nas.FAMILIES,
        "nemotron-nas": nemotron_nas.FAMILIES,
        "onnx": onnx_graph.FAMILIES,
    }
    assert STOCK_ARCHITECTURE.keys() == PER_LAYER_ARCHITECTURE.keys()
    listed = {name: set(engine.families) for name, engine in ENGINES.items() if engine.families is not None}
    assert listed == {name: set(families) for name, families in known.items()}
    assert all(FAMILIES[name].num_kv_heads is not None for name in uniform.FAMILIES)
    page = (SERVING.parent / "families.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    claims = {row[0]: set(row[-1].split(", ")) - {"transformers"} for row in rows if row[0] in FAMILIES}
    assert claims == {name: {engine for engine in known if name in known[engine]} for name in FAMILIES}


def test_the_commands_of_serving_run(grouped: Models, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", SERVING.read_text("utf-8"), flags=re.DOTALL)
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("gqakit export")]
    assert len(lines) >= 4
    for line in lines:
        nas = "nemotron-nas" in line  # which takes groups of one size in each layer
        model = grouped("llama", "equal_sizes", intermediate_size=256) if nas else grouped()
        words = [
            word.replace("$OUT", str(model)).replace("$WORK", str(tmp_path)) for word in shlex.split(line)
        ]
        if "onnx" not in words:  # that one takes long, and has a test
            succeeds(*words[1:])


@pytest.mark.parametrize("engine", ENGINE_CACHES)
def test_every_type_that_is_offered_can_be_asked_for(engine: str) -> None:
    for pair in offered(engine, head_dim=64):
        said = serving(pair, engine)
        assert bool(said) == (pair.name != FULL)
        assert "{key}" not in said
        assert "{value}" not in said
        if engine == "transformers" and said:
            how = json.loads(said[said.index("{") : said.rindex("}") + 1])
            assert set(how) <= set(inspect.signature(QuantizedCache).parameters)
