"""Grouped checkpoints on disk: with gqakit registered, saved again, and with only the shipped code."""

import json
import os
import subprocess
import sys
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

from gqakit.errors import CheckpointError
from gqakit.models.load import load


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


def run_without_gqakit(trust: str, *paths: Path, home: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env = {**kept, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(home / "modules"), "HF_HOME": str(home)}
    blocker = home / "without_gqakit"
    blocker.mkdir(parents=True, exist_ok=True)
    # An installed gqakit must not help either.
    (blocker / "sitecustomize.py").write_text("import sys\nsys.modules['gqakit'] = None\n")
    return subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_GQAKIT, trust, *map(str, paths)],
        env={**env, "PYTHONPATH": str(blocker)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@torch.no_grad()
def test_shipped_code_alone_gives_the_same_logits(tmp_path):
    paths = []
    for family in ("llama", "qwen3"):
        path, model = checkpoint(tmp_path / family, family, DIFFERING)
        ids = tokens()
        torch.save(ids, path / "ids.pt")
        torch.save(model(ids).logits, path / "logits.pt")
        torch.save(model.model(ids).last_hidden_state, path / "last_hidden_state.pt")
        paths.append(path)
    done = run_without_gqakit("trust", *paths, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("transformers_modules.") == 2


def test_without_gqakit_and_trust_loading_fails_clearly(tmp_path):
    path, _ = checkpoint(tmp_path / "written")
    torch.save(tokens(), path / "ids.pt")
    done = run_without_gqakit("no", path, home=tmp_path / "home")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr
