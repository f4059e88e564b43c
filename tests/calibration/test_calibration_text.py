"""Texts and the windows of tokens cut from them."""

import pytest
import torch

from gqakit.data.text import Text, read_text, token_windows
from gqakit.errors import DataError


class Letters:
    """A tokenizer with one token a character, and special tokens around."""

    def __init__(self, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> None:
        self.before, self.after = list(before), list(after)
        self.longest = 0

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        self.longest = max(self.longest, len(text))
        ids = [ord(c) for c in text]
        return {"input_ids": self.before + ids + self.after if add_special_tokens else ids}

    def decode(self, token_ids) -> str:
        return "".join(map(chr, token_ids))


def cut(content: str, tokenizer: Letters | None = None, **options) -> list[str]:
    """The windows as text, 1 shown as ^."""
    windows = token_windows(tokenizer or Letters(), Text("t", content), **options)
    assert windows.dtype == torch.long
    return ["".join("^" if t == 1 else chr(t) for t in window) for window in windows.tolist()]


def test_consecutive_windows():
    assert cut("abcdefgh", window=3) == ["abc", "def"]
    assert cut("abcdefgh", window=4) == ["abcd", "efgh"]
    assert cut("abcdefgh", window=8) == ["abcdefgh"]


def test_no_more_tokens_than_asked():
    assert cut("abcdefgh", window=3, tokens=5) == ["abc"]
    assert cut("abcdefgh", window=2, tokens=6) == ["ab", "cd", "ef"]
    assert cut("abcdefgh", window=2, tokens=100) == ["ab", "cd", "ef", "gh"]


def test_skip_leaves_out_the_first():
    assert cut("abcdefgh", window=2, skip=2) == ["ef", "gh"]
    assert cut("abcdefgh", window=2, skip=1, tokens=4) == ["cd", "ef"]
    first, rest = cut("abcdefgh", window=3, tokens=3), cut("abcdefgh", window=3, skip=1)
    assert not set("".join(first)) & set("".join(rest))


def test_parts_take_turns_until_they_are_used_up():
    mixed = Text.mixed([Text("letters", "abcdef"), Text("digits", "12"), Text("signs", "+-*/")])

    def windows(**options) -> list[str]:
        return [
            "".join(map(chr, row)) for row in token_windows(Letters(), mixed, window=2, **options).tolist()
        ]

    assert windows() == ["ab", "12", "+-", "cd", "*/", "ef"]
    assert windows(tokens=8) == ["ab", "12", "+-", "cd"]
    assert windows(skip=2, tokens=5) == ["+-", "cd"]
    with pytest.raises(DataError, match="text digits has 2 tokens, too few for one window of 3"):
        token_windows(Letters(), mixed, window=3)


def test_where_parts_end_counts():
    parts = [Text("a", "one"), Text("b", "two")]
    mixed = Text.mixed(parts)
    assert mixed.name == "a + b"
    assert mixed.content == "one\n\ntwo"
    assert mixed.sha256 != Text("a + b", "one\n\ntwo").sha256
    assert mixed.sha256 != Text.mixed(parts[::-1]).sha256
    assert Text.mixed(parts[:1]) == parts[0]


def test_every_window_opens_as_the_tokenizer_opens_a_text():
    bos = Letters(before=(1,))
    assert cut("abcdefgh", bos, window=3) == ["^ab", "^cd", "^ef", "^gh"]
    assert cut("abcdefgh", bos, window=3, tokens=7) == ["^ab", "^cd"]
    assert cut("abcdefgh", bos, window=3, skip=3) == ["^gh"]
    assert cut("abcdefgh", Letters(before=(1,), after=(2,)), window=5) == ["^abcd", "^efgh"]
    assert cut("abcdefgh", Letters(after=(2,)), window=4) == ["abcd", "efgh"]


def test_a_corpus_is_not_encoded_for_a_few_tokens():
    tokenizer = Letters()
    token_windows(tokenizer, Text("t", "x" * 1_000_000), window=10, tokens=20, skip=1)
    assert tokenizer.longest == 30 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 9}, r"text t has 8 tokens, too few for one window of 9; give more text"),
        ({"window": 3, "skip": 2}, "too few for one window of 3 after 2 others"),
        ({"window": 1}, "ask for more `tokens`"),
        ({"window": 4, "tokens": 3}, "a window of 4 tokens out of 3 makes no window"),
    ],
)
def test_too_little(options, message):
    with pytest.raises(DataError, match=message):
        cut("abcdefgh", **options)


def test_files_in_turns(tmp_path):
    (tmp_path / "a.txt").write_text("eins", encoding="utf-8")
    (tmp_path / "b.txt").write_text("zwei ü", encoding="utf-8")
    text = read_text([tmp_path / "a.txt", str(tmp_path / "b.txt")])
    assert text == Text.mixed([Text("a.txt", "eins"), Text("b.txt", "zwei ü")])
    assert text.sha256 != read_text([tmp_path / "a.txt"]).sha256
    assert Text("a.txt", "eins").sha256 == Text("other name", "eins").sha256


def test_bundled_texts_are_held_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calibration, evaluation = read_text(["calibration"]), read_text(["evaluation"])
    assert calibration.name == "gqakit calibration text"
    assert len(calibration.content) > 1000
    assert evaluation.content not in calibration.content
    (tmp_path / "calibration").write_text("mine")
    assert read_text(["calibration"]) == calibration  # what lies about never replaces a default
    assert read_text(["./calibration"]).content == "mine"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"cannot read text .*none\.txt: No such file"):
        read_text([tmp_path / "none.txt"])
    (tmp_path / "latin.txt").write_bytes("über".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8: .* at byte 0"):
        read_text([tmp_path / "latin.txt"])
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        read_text([tmp_path / "empty.txt"])
