"""Which files go along with the weights."""

import json

import pytest
from checkpoint_builders import CONFIG, files, single, write_config

from gqakit.checkpoint import copy_side_files, side_files
from gqakit.errors import CheckpointError

COPIED = [
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
    ),
    *("vocab.txt", "merges.txt", "tokenizer.model", "tokenizer.model.v3", "spiece.model", "qwen.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json", "preprocessor_config.json"),
    *("processor_config.json", "video_preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE"),
    *("USE_POLICY.md", "additional_chat_templates/rag.jinja"),
]
LEFT = [
    *("README.md", ".gitattributes", ".hidden.model", "pytorch_model.bin", "model.pt", "training_args.bin"),
    *("model.safetensors.index.json", "modeling_x.py", "vocab.bin", "notes.txt", "tokenizer/tokenizer.json"),
    *("LICENSE.partial", "additional_chat_templates/notes.md"),
]


def fill(path, names):
    for name in names:
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_text("{}")


def copied(source, out):
    names = side_files(source)
    copy_side_files(source, out, names)
    return names


def test_what_is_copied(tmp_path):
    source, out = single(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    fill(source, COPIED + LEFT)
    data = bytes(range(256)) * 3
    (source / "tokenizer.model").write_bytes(data)
    assert copied(source, out) == tuple(sorted(COPIED))
    assert sorted(files(out)) == sorted(COPIED)
    assert (out / "tokenizer.model").read_bytes() == data


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_custom_code_goes_with_an_auto_map(tmp_path, where):
    source, out = tmp_path / "in", tmp_path / "out"
    write_config(source)
    out.mkdir()
    fill(source, ["modeling_x.py", "helper.py", ".secret.py"])
    assert copied(source, out) == ()
    (source / where).write_text(json.dumps({**CONFIG, "auto_map": {"AutoModel": "modeling_x.X"}}))
    assert {"modeling_x.py", "helper.py"} < {*copied(source, out), "config.json"}
    assert not (out / ".secret.py").exists()


def test_hub_snapshots_are_links(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_config(source)
    out.mkdir()
    (tmp_path / "blob").write_text("content")
    (source / "merges.txt").symlink_to(tmp_path / "blob")
    (source / "vocab.json").symlink_to(tmp_path / "gone")
    assert copied(source, out) == ("merges.txt",)
    assert not (out / "merges.txt").is_symlink()
    assert (out / "merges.txt").read_text() == "content"


def test_unreadable_tokenizer_config(tmp_path):
    write_config(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not valid JSON"):
        copied(tmp_path, tmp_path)
