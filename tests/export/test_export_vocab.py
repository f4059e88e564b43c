"""Tokenizers: what GGUF holds of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import refused, succeeds
from tiny_models import edit_json
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from gqakit.checkpoint import Checkpoint
from gqakit.exporters.gguf_vocab import PRE_OF_REGEX, read_vocab

gguf = pytest.importorskip("gguf")
Models = Callable[..., Path]


def with_pre(source: Path, steps: list[dict]) -> None:
    pre = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    edit_json(source / "tokenizer.json", pre_tokenizer=pre)


def byte_level(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def test_known_splits_are_recognised(copy: Models) -> None:
    source = copy("llama", kv_heads=4)
    digits = {"type": "Digits", "individual_digits": True}
    with_pre(source, [digits, byte_level(True)])
    assert read_vocab(Checkpoint.open(source)).pre == "smollm"
    for regex, name in PRE_OF_REGEX.items():
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        with_pre(source, [split, byte_level(False)])
        assert read_vocab(Checkpoint.open(source)).pre == name


def test_an_unknown_split_is_refused_unless_named(copy: Models) -> None:
    source = copy("llama", kv_heads=4)
    with_pre(source, [{"type": "Punctuation", "behavior": "Isolated"}, byte_level(True)])
    refused(2, "export", source, "--to", "gguf", "-o", "x.gguf", says=("Punctuation", "--tokenizer-pre"))
    ran = succeeds("export", source, "--to", "gguf", "-o", "x.gguf", "--tokenizer-pre", "default")
    assert "tokenizer.ggml.pre is default\n" in ran.out


def test_other_tokenizers_are_refused(copy: Models) -> None:
    source = copy("llama", kv_heads=4)
    data = json.loads((source / "tokenizer.json").read_text())
    edit_json(source / "tokenizer.json", model={"type": "Unigram", "vocab": []})
    refused(3, "export", source, "--to", "gguf", "-o", "x.gguf", says=("Unigram",))
    data["model"]["vocab"]["beyond"] = 4000
    (source / "tokenizer.json").write_text(json.dumps(data))
    refused(3, "export", source, "--to", "gguf", "-o", "x.gguf", says=("beyond", "4000"))
    (source / "tokenizer.json").write_text("{")
    refused(3, "export", source, "--to", "gguf", "-o", "x.gguf", says=("JSON",))
    (source / "tokenizer.json").unlink()
    refused(3, "export", source, "--to", "gguf", "-o", "x.gguf", says=("tokenizer.json",))


def test_two_ends_of_text_are_both_written(copy: Models) -> None:
    source = copy("llama", kv_heads=4)
    edit_json(source / "generation_config.json", eos_token_id=[2, 9])
    special = read_vocab(Checkpoint.open(source)).special
    assert special.special_token_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 0, "eot": 9}


def test_an_id_of_minus_one_is_none(copy: Models) -> None:
    source = copy("llama", kv_heads=4)
    edit_json(source / "config.json", pad_token_id=-1)
    assert "pad" not in read_vocab(Checkpoint.open(source)).special.special_token_ids


def test_bos_given_as_an_object_is_found(copy: Models) -> None:
    source = copy("llama", kv_heads=4)
    edit_json(source / "tokenizer_config.json", bos_token={"content": "<s>"}, add_bos_token=None)
    assert read_vocab(Checkpoint.open(source)).special.add_special_token == {"bos": True, "eos": False}


def sentencepiece_like(source: Path) -> Tokenizer:
    """Give a model a tokenizer of Llama 2's kind: BPE over `▁`-spaced text, bytes where it knows no better."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner.train_from_iterator(
        ["the cat sat on the mat and the hat sat on the cat"] * 4,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    path = source / "tokenizer.json"
    inner.save(str(path))
    data = json.loads(path.read_text())
    data["added_tokens"] = data["added_tokens"][:3]
    data["post_processor"] = None
    path.write_text(json.dumps(data))
    return Tokenizer.from_file(str(path))


def test_byte_fallback_is_sentencepiece(copy: Models) -> None:
    source = copy("llama", kv_heads=4, vocab_size=300)
    sentencepiece_like(source)
    vocab = read_vocab(Checkpoint.open(source))
    assert (vocab.model, vocab.pre, vocab.space_prefix) == ("llama", None, True)
    assert vocab.special.add_special_token["bos"] is False
    assert vocab.types[0] == gguf.TokenType.UNKNOWN
    assert vocab.types[3:259] == [gguf.TokenType.BYTE] * 256
    refused(
        2, "export", source, "--to", "gguf", "-o", "x.gguf", "--tokenizer-pre", "x", says=("byte fallback",)
    )


def test_llama_cpp_cuts_text_into_the_same_tokens(copy: Models) -> None:
    pytest.importorskip("xllamacpp")
    from llama_cpp import run

    source = copy("llama", kv_heads=4, vocab_size=300)
    tokenizer = sentencepiece_like(source)
    succeeds("export", source, "--to", "gguf", "-o", "x.gguf")
    for text in ("a hat, über the m", "  two  spaces "):  # bytes for what has no token; spaces at both ends
        tokens = tokenizer.encode(text).ids
        by_text, by_ids = (run(Path("x.gguf"), prompt, 4, exact=True) for prompt in (text, tokens))
        assert by_text.prompt_tokens == len(tokens)
        assert by_text.logprobs == by_ids.logprobs
