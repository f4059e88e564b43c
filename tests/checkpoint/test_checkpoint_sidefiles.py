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
    *("USE_POLICY.md", "additional_chat_templates/rag.jinja", "additional_chat_templates/notes.md"),
    *("notes.txt", "tokenizer/tokenizer.json", "1_Pooling/config.json", "conversion_config.json"),
    *("a/b/c.json", "a/README.md", "examples/cat.png"),
]
LEFT = [
    *("README.md", ".gitattributes", ".hidden.model", "pytorch_model.bin", "model.pt", "training_args.bin"),
    *("model.safetensors.index.json", "modeling_x.py", "vocab.bin", "LICENSE.partial"),
    *(
        "b/model.safetensors",
        "b/config.json",
        "b/c/config.json",
        "lora/adapter_config.json",
        "lora/adapter_model.bin",
    ),
    *(
        "params.json",
        "trainer_state.json",
        "all_results.json",
        "logs/x.txt",
        "global_step5/a",
        "x_fsdp_0/__0_0.distcp",
    ),
    *("openvino_tokenizer.xml", "openvino_tokenizer.bin", "model.safetensors.index.fp16.json"),
    *("onnx/config.json", "onnx/model.onnx", "original/params.json", ".git/config", "__pycache__/x.pyc"),
    *(
        "a/.hidden",
        "a/code.py",
        "gqakit-plan.json",
        "gqakit-checksums.json",
        "checkpoint-500/trainer_state.json",
    ),
    *("tf_model.h5", "flax_model.msgpack", "model.gguf", "runs/x/events.out.tfevents.1", "optimizer.pt"),
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


def test_links_that_leave_the_checkpoint(tmp_path, caplog):
    """A repository cloned from somebody may hold a link to one's own files; they do not go into the output."""
    source, out = tmp_path / "in", tmp_path / "out"
    write_config(source)
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "id").write_text("secret")
    (source / "notes.txt").symlink_to(tmp_path / "elsewhere" / "id")
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    (source / "loop").symlink_to(source)
    (source / "inside.txt").write_text("mine")
    (source / "again.txt").symlink_to("inside.txt")
    assert copied(source, out) == ("again.txt", "inside.txt")
    assert "notes.txt: a link to" in caplog.text
    assert sorted(files(out)) == ["again.txt", "inside.txt"]


def test_any_file_of_a_hub_cache_is_copied(tmp_path):
    source, out = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "out"
    write_config(source)
    out.mkdir()
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    (blobs / "1").write_text("content")
    (source / "any.json").symlink_to(blobs / "1")
    assert copied(source, out) == ("any.json",)


def test_what_is_large_and_unknown_stays(tmp_path, caplog):
    source, out = tmp_path / "in", tmp_path / "out"
    write_config(source)
    out.mkdir()
    for name in ("video.mp4", "tokenizer.json"):
        with (source / name).open("wb") as file:
            file.truncate(101 * 2**20)  # sparse: takes no time to make
    assert side_files(source) == ("tokenizer.json",)
    assert "video.mp4: larger than 100 MiB" in caplog.text


def test_the_modules_of_a_sentence_transformer_keep_their_weights(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_config(source)
    out.mkdir()
    fill(
        source,
        ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Other/model.bin"],
    )
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    (source / "modules.json").write_text(json.dumps(modules))
    assert {*copied(source, out)} == {
        *("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    }
    (source / "modules.json").write_text("[3")
    assert "2_Dense/model.safetensors" not in side_files(source)


def test_unreadable_tokenizer_config(tmp_path):
    write_config(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not valid JSON"):
        copied(tmp_path, tmp_path)
