"""Text files cut into windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gqakit.errors import DataError, MissingDependencyError

BUNDLED = ("calibration", "evaluation")
"""Texts that come with gqakit, usable by name wherever a file is asked for; the second is held out."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        """Token ids under `input_ids`."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens."""
        ...


@dataclass(frozen=True)
class Text:
    """A text and what to call it.

    Attributes:
        name: for people. content: all of it.
        parts: the texts that it was put together from, which take turns in its windows; none for one piece.
    """

    name: str
    content: str
    parts: tuple[Text, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the content, and of where its parts end."""
        whole = "\0".join(part.content for part in self.parts) or self.content
        return hashlib.sha256(whole.encode()).hexdigest()

    @classmethod
    def mixed(cls, parts: Sequence[Text]) -> Text:
        """Several texts as one, whose windows are of each in turn."""
        if len(parts) == 1:
            return parts[0]
        name, content = " + ".join(part.name for part in parts), "\n\n".join(part.content for part in parts)
        return cls(name, content, tuple(parts))


def read_text(sources: Sequence[str | Path]) -> Text:
    """The texts of files, or of a bundled name. Of several, windows are taken in turn.

    Raises:
        DataError: when a file is missing, not UTF-8 or empty.
    """
    return Text.mixed([_read(source) for source in sources])


def _read(source: str | Path) -> Text:
    # A bundled name is no file: what lies about never replaces a default. A file of that name is ./NAME.
    if isinstance(source, str) and source in BUNDLED:
        content = files("gqakit").joinpath("data", "assets", f"{source}.txt").read_text(encoding="utf-8")
        return Text(f"gqakit {source} text", content)
    content = read_utf8(path := Path(source), "text")
    if not content.strip():
        raise DataError(f"text {path} is empty")
    return Text(path.name, content)


def read_utf8(path: Path, kind: str) -> str:
    """What a file of text holds; `kind` is what messages call it.

    Raises:
        DataError: when it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {kind} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{kind} {path} is not UTF-8: {error.reason} at byte {error.start}") from error


def read_dataset(name: str, split: str, column: str, characters: int = 50_000_000) -> Text:
    """The texts of a dataset column, row after row, up to some length. Streams, so a large dataset is no matter.

    Args:
        name: a hub name, or a local directory or file that `datasets` reads.
        split: which split. column: which column.
        characters: enough; the rest is not read.

    Raises:
        MissingDependencyError: without the `data` extra.
        DataError: when dataset, split or column are not there.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingDependencyError(
            "`dataset` needs the 'data' extra: pip install 'gqakit[data]'"
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"dataset {name!r}, split {split!r} cannot be read: {str(error).splitlines()[0]}"
        ) from error
    parts: list[str] = []
    length = 0
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            seen = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"dataset {name!r} has no text column {column!r}; its columns are {seen}")
        parts.append(row[column])
        length += len(row[column])
        if length >= characters:
            break
    text = "\n\n".join(parts)
    if not text.strip():
        raise DataError(f"dataset {name!r}, split {split!r}, column {column!r} is empty")
    return Text(f"{name}[{split}].{column}", text)


def token_windows(
    tokenizer: Tokenizer, text: Text, *, window: int, tokens: int | None = None, skip: int = 0
) -> Tensor:
    """Windows of the text, `[windows, window]` token ids: consecutive, what is left at the end cut off.

    A text of several parts gives one window of each in turn, until each is used up. Where the tokenizer opens a text with a
    special token (BOS), every window opens with it.

    Args:
        tokenizer: of the model.
        text: what to cut.
        window: tokens per window.
        tokens: the most tokens in all, rounded down to whole windows; None for the whole text.
        skip: number of windows at the start that are left out.

    Raises:
        DataError: when not even one window comes out of every part.
    """
    if window < 2 or (tokens is not None and tokens < window):
        raise DataError(
            f"a window of {window} tokens out of {tokens} makes no window; ask for more `tokens`, or a "
            "`window` of at least 2 and at most that"
        )
    end = None if tokens is None else tokens // window + skip
    parts = [_windows_of(tokenizer, part, window, end) for part in text.parts or (text,)]
    # Round by round: the first windows of all parts, then the second ones, ….
    turns = sorted((turn, part) for part, windows in enumerate(parts) for turn in range(len(windows)))[:end]
    if len(turns) <= skip:
        raise DataError(
            f"text {text.name} is cut into {len(turns)}, too few for one window of {window} after {skip} others; give "
            "more text or a smaller `window`"
        )
    return torch.stack([parts[part][turn] for turn, part in turns[skip:]])


def _windows_of(tokenizer: Tokenizer, text: Text, window: int, most: int | None) -> Tensor:
    """The first windows of one text, `[windows, window]`; all of them without `most`."""
    # A token is seldom longer than 16 characters: enough, without encoding a whole corpus.
    content = text.content if most is None else text.content[: most * window * 16]
    prefix = _opening(tokenizer)
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    body = window - len(prefix)
    if body < 1:
        raise DataError(
            f"a window of {window} tokens has no room beside the {len(prefix)} that open every text"
        )
    count = len(ids) // body
    if count < 1:
        raise DataError(
            f"text {text.name} has {len(ids)} tokens, too few for one window of {window}; give more text or a "
            "smaller `window`"
        )
    cut = torch.tensor(ids[: count * body]).view(count, body)
    return torch.cat([torch.tensor(prefix, dtype=cut.dtype).expand(count, -1), cut], dim=1)


def _opening(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that open every text, usually none or BOS."""
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    return full[: full.index(plain[0])] if plain and plain[0] in full else []
