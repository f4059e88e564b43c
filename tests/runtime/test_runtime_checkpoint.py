"""Grouped checkpoints on disk: with gqakit registered, saved again, and with only the shipped code."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from runtime_models import (
    DIFFERING,
    FAMILIES,
    MAPS,
    SAME,
    build,
    grouped_raw,
    pair,
    stock_config,
    tokens,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

import gqakit
from gqakit.errors import CheckpointError
from gqakit.models.load import load
from gqakit.models.remote_code.forward import FORWARDS
from gqakit.models.shipping import shipped_code


def checkpoint(folder, family="llama", maps=SAME):
    raw = grouped_raw(stock_config(family), maps)
    model = build(raw)
    return write_checkpoint(folder, model, raw), model


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_round_trip(tmp_path, family, maps):
    path, model = checkpoint(tmp_path / "written", family, MAPS[maps])
    ids = tokens()
    expected = model(ids).logits
    loaded = load(path)
    assert type(loaded).__name__ == json.loads((path / "config.json").read_text())["architectures"][0]
    assert not loaded.training
    assert torch.equal(loaded(ids).logits, expected)

    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(ids).logits, expected)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (path, tmp_path / "saved")
    )
    assert {**before, "architectures": None}.items() <= {
        **after,
        "architectures": None,
        "layer_types": None,
    }.items()
    assert {file.name for file in path.glob("*.py")} == {
        file.name for file in (tmp_path / "saved").glob("*.py")
    }

    base = AutoModel.from_pretrained(path)
    assert type(base).__name__.endswith("Model")
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)


@pytest.mark.parametrize("maps", MAPS)
def test_load_in_bfloat16(tmp_path, maps):
    path, _ = checkpoint(tmp_path / "written", "qwen3", MAPS[maps])
    model = load(path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half").dtype == torch.bfloat16
    assert load(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@torch.no_grad()
def test_where_transformers_does_not_know_per_layer_config(tmp_path, monkeypatch):
    path, model = checkpoint(tmp_path / "written")
    expected = model(tokens()).logits
    for name in ("per_layer_config", "allow_global_per_layer_attribute_access"):
        for base in PreTrainedConfig.__mro__:
            if name in vars(base):
                monkeypatch.delattr(base, name)
    loaded = load(path)
    assert loaded.config.per_layer_config["0"] == {"num_key_value_heads": 2}  # a plain attribute
    # Without a cache: the cache of the releases that know per_layer_config depends on it.
    assert torch.equal(loaded(tokens(), use_cache=False).logits, expected)


def test_load_reads_stock_checkpoints(tmp_path):
    _, stock = pair("mistral", SAME)
    stock.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(tokens()).logits, stock(tokens()).logits)


def test_load_refuses_what_is_not_a_whole_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(tmp_path / "nowhere")
    path, _ = checkpoint(tmp_path / "written")
    weights = load_file(path / "model.safetensors")
    weights.pop("model.layers.1.self_attn.k_proj.weight")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors.*layers\.1\.self_attn\.k_proj\.weight"):
        load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load(path)


def test_tokenizer_of_a_grouped_checkpoint(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    path, _ = checkpoint(tmp_path / "written")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    assert AutoTokenizer.from_pretrained(path)("a b")["input_ids"] == [1, 2]


LOAD_WITHOUT_GQAKIT = """
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM
try:
    import gqakit
    raise SystemExit("gqakit must not be importable here")
except ImportError:
    pass
trust, *paths = sys.argv[1:]
for path in paths:
    ids = torch.load(path + "/ids.pt")
    for auto, name in ((AutoModelForCausalLM, "logits"), (AutoModel, "last_hidden_state")):
        model = auto.from_pretrained(path, trust_remote_code=trust == "trust").eval()
        with torch.no_grad():
            torch.testing.assert_close(model(ids)[0], torch.load(path + f"/{name}.pt"), atol=1e-5, rtol=1e-5)
    model.save_pretrained(path + "/saved")
    AutoModel.from_pretrained(path + "/saved", trust_remote_code=True)
    print(type(model).__module__)
"""


BOTH_CODES = """
import sys, torch
from transformers import AutoModelForCausalLM
path, = sys.argv[1:]
ids, expected = torch.load(path + "/ids.pt"), torch.load(path + "/logits.pt")
theirs = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
from gqakit.models.load import load  # from here on the package's classes come first
ours = load(path)
print(type(ours).__module__, type(theirs).__module__)
# The name of the attention function is one for both: that of the last code to be imported runs all models.
for code in (sys.modules[type(model).__module__] for model in (ours, theirs)):
    code.AttentionInterface.register("gqakit", code.grouped_attention_forward)
    for model in (ours, theirs):
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
"""


def run_without_gqakit(trust: str, *paths: Path, home: Path) -> subprocess.CompletedProcess[str]:
    blocker = home / "without_gqakit"
    blocker.mkdir(parents=True, exist_ok=True)
    # An installed gqakit must not help either.
    (blocker / "sitecustomize.py").write_text("import sys\nsys.modules['gqakit'] = None\n")
    return run(LOAD_WITHOUT_GQAKIT, trust, *map(str, paths), home=home, path=blocker)


def run(code: str, *arguments: str, home: Path, path: Path) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    env = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(home / "modules"), "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **env, "PYTHONPATH": str(path)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@torch.no_grad()
def checkpoint_with_logits(folder, family):
    path, model = checkpoint(folder, family, DIFFERING)
    ids = tokens()
    torch.save(ids, path / "ids.pt")
    torch.save(model(ids).logits, path / "logits.pt")
    torch.save(model.model(ids).last_hidden_state, path / "last_hidden_state.pt")
    return path


def with_code_of_november_2026(path):
    """Its shipped code replaced by that of checkpoints written then, when it held the kernels too."""
    for file in path.glob("*.py"):
        file.unlink()
    with zipfile.ZipFile(Path(__file__).with_name("data") / "shipped_code_2026_11.zip") as code:
        code.extractall(path)
    return path


@pytest.mark.parametrize("family", ["llama", *sorted(FORWARDS)])
def test_shipped_code_is_one_package_and_short(family):
    """Every relative import is of a shipped file, no other is of gqakit, and it can be read in an hour."""
    code = {name.removesuffix(".py"): content.decode() for name, content in shipped_code(family).items()}
    assert all(name.endswith("_gqakit") for name in code)
    for content in code.values():
        imports = [node for node in ast.walk(ast.parse(content)) if isinstance(node, ast.ImportFrom)]
        assert {node.module for node in imports if node.level} <= code.keys()
    ours = [
        line.strip()
        for content in code.values()
        for line in content.splitlines()
        if "import gqakit" in line or "from gqakit" in line
    ]
    assert ours == ["from gqakit.models import decode_kernels"]
    assert sum(content.count("\n") for content in code.values()) < 1000


def test_shipped_code_alone_gives_the_same_logits(tmp_path):
    paths = [checkpoint_with_logits(tmp_path / family, family) for family in ("llama", "qwen3")]
    paths.append(with_code_of_november_2026(checkpoint_with_logits(tmp_path / "older", "llama")))
    load(paths[0]).save_pretrained(tmp_path / "saved")  # by the package, to be loaded without it
    for name in ("ids.pt", "logits.pt", "last_hidden_state.pt"):
        shutil.copy(paths[0] / name, tmp_path / "saved")
    done = run_without_gqakit("trust", *paths, tmp_path / "saved", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("transformers_modules.") == 4


def test_layers_that_differ_are_nothing_to_remark_on(tmp_path):
    path = checkpoint_with_logits(tmp_path / "written", "llama")
    assert json.loads((path / "config.json").read_text())["per_layer_config"]
    done = run_without_gqakit("trust", path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "heterogeneous" not in done.stderr


def test_older_shipped_code_and_the_package_run_in_one_process(tmp_path):
    path = with_code_of_november_2026(checkpoint_with_logits(tmp_path / "older", "llama"))
    done = run(BOTH_CODES, str(path), home=tmp_path / "home", path=Path(gqakit.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    ours, theirs = done.stdout.split()
    assert ours == "gqakit.models.remote_code.modeling"
    assert theirs.startswith("transformers_modules.")


def test_without_gqakit_and_trust_loading_fails_clearly(tmp_path):
    path, _ = checkpoint(tmp_path / "written")
    torch.save(tokens(), path / "ids.pt")
    done = run_without_gqakit("no", path, home=tmp_path / "home")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr
