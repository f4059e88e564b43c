"""Text that cannot be used, and models that do not speak the same language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import SMALL, refused
from tiny_fixtures import Models

TEXTS: list[tuple[str, bytes | None, tuple[str, ...]]] = [
    ("missing", None, ("text.txt", "No such file")),
    ("empty", b"", ("text.txt", "is empty")),
    ("blank", b" \n\n", ("text.txt", "is empty")),
    ("not UTF-8", b"na\xefve", ("text.txt", "not UTF-8", "byte 2")),
    ("short", b"Too few words.", ("text.txt", "too few for one window of 32", "smaller --window")),
]


@pytest.mark.parametrize(("content", "says"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
def test_a_text_that_cannot_be_used(model: Models, content: bytes | None, says: tuple[str, ...]) -> None:
    if content is not None:
        Path("text.txt").write_bytes(content)
    text = ("--text", "text.txt", *SMALL)
    refused(9, "calibrate", model(), "-o", "m.safetensors", *text, says=says)
    refused(9, "convert", model(), "-o", "out", "--kv-heads", 2, *text, says=says)
    refused(9, "evaluate", model(), *text, says=says)


def test_a_directory_as_text(model: Models) -> None:
    Path("texts").mkdir()
    refused(9, "evaluate", model(), "--text", "texts", *SMALL, says=("texts", "directory"))


@pytest.mark.parametrize(
    ("command", "tokens", "window"),
    [
        *((command, 16, 32) for command in ("calibrate", "convert", "evaluate")),
        *(
            ("calibrate", 32, 1),
            ("convert", 32, 0),
            ("evaluate", 0, 32),
            ("calibrate", -1, 32),
            ("convert", 32, -4),
        ),
    ],
)
def test_tokens_and_windows_that_make_none(model: Models, command: str, tokens: int, window: int) -> None:
    rest: dict[str, tuple[Any, ...]] = {
        "calibrate": ("-o", "m.safetensors"),
        "convert": ("-o", "out", "--kv-heads", 2),
        "evaluate": (),
    }
    sizes = ("--tokens", tokens, "--window", window)
    if tokens < 1 or window < 2:
        options = [("--tokens", tokens, 1), ("--window", window, 2)]
        says = tuple(f"{name} is {n}, expected a number at least {m}" for name, n, m in options if n < m)
        refused(2, command, model(), *rest[command], *sizes, says=says)
    else:
        says = (f"window of {window} tokens", "--tokens", "--window")
        refused(9, command, model(), *rest[command], *sizes, says=says)


def test_a_text_for_evaluation_that_is_not_there_is_said_before_the_conversion(model: Models) -> None:
    command = ("convert", model(), "-o", "out", "--kv-heads", 2, *SMALL, "--evaluate-text", "held-out.txt")
    refused(9, *command, says=("held-out.txt",))


def test_evaluating_a_model_of_another_vocabulary(model: Models) -> None:
    other = model("llama", vocab_size=140)
    refused(9, "evaluate", model(), other, *SMALL, says=("vocabulary of 140", "one of 128", "not made of it"))


def test_evaluating_what_is_not_there(model: Models) -> None:
    refused(3, "evaluate", model(), "./nowhere", *SMALL, says=("nowhere",))
