"""`gqakit sample`: text that a model writes by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import refused, succeeds
from tiny_models import tokenizer
from transformers import BertConfig, BertModel

from gqakit.models.sample import _chat_start, _text

Models = Callable[..., Path]


def test_as_many_tokens_as_asked_and_the_same_for_a_seed(model: Models) -> None:
    source = model()
    size = ("--tokens", 70, "--window", 16)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        said = succeeds("sample", source, *size, "--seed", seed, "-o", f"{name}.txt").out
        assert f"--text {name}.txt" in said
    a, b, c = (Path(f"{name}.txt").read_text("utf-8") for name in "abc")
    assert a == b != c
    written = tokenizer()(a, add_special_tokens=False)["input_ids"]
    assert (
        40 <= len(written) <= 80 + 5 * 2
    )  # 5 samples; what ended a text is a blank line now, and joins may merge


def test_nothing_that_the_model_may_write_is_left_out(model: Models) -> None:
    """A random model is about as likely to write any of its tokens: of the 50 likeliest alone these would be 50."""
    succeeds("sample", model(), "--tokens", 800, "--window", 2, "-o", "own.txt")
    firsts = {part[:1] for part in Path("own.txt").read_text("utf-8").split("\n\n")}
    assert len(firsts) > 50


def test_texts_end_in_a_blank_line_and_chats_begin_with_the_user() -> None:
    known = tokenizer()
    one, two = (known(word, add_special_tokens=False)["input_ids"] for word in ("one", "two"))
    assert _text(known, [*one, known.eos_token_id, known.bos_token_id, *two]) == "one\n\ntwo"
    assert known.decode(_chat_start(known, "m")) == "<unk>user<unk>"  # <user>, as far as this vocabulary goes


def test_calibrates_in_place_of_a_text(model: Models) -> None:
    source = model()
    succeeds("sample", source, "--tokens", 256, "--window", 64, "-o", "own.txt")
    succeeds(
        "convert", source, "-o", "out", "--kv-heads", 4, "--text", "own.txt",
        "--tokens", 128, "--window", 32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "options", "says"),
    [
        (2, ("--tokens", 0), "at least 1"),
        (2, ("--temperature", 0), "--temperature"),
        (7, ("-o", "none/own.txt"), "none/own.txt"),
    ],
)
def test_refused(code: int, options: tuple[str, ...], says: str, model: Models) -> None:
    refused(code, "sample", model(), "-o", "own.txt", *options, says=(says,))
    assert not Path("own.txt").exists()


def test_an_encoder_does_not_write(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    refused(4, "sample", tmp_path / "bert", "-o", "own.txt", says=("bert", "does not write text"))
