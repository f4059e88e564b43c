"""What a comparison makes: a way at a budget, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from gqakit.comparison.options import CompareOptions
from gqakit.comparison.ways import Way
from gqakit.core.cache_types import CachePair


@dataclass(frozen=True)
class Trial:
    """One checkpoint to be: a way at a budget, repaired or not."""

    way: Way
    budget: str
    ratio: float
    repaired: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.label} {self.budget}"

    @property
    def label(self) -> str:
        """The way, with what is done afterwards."""
        return f"{self.way.name}, repaired" if self.repaired else self.way.name

    @property
    def slug(self) -> str:
        """The name of its directory."""
        return self.name.replace(", ", "-").replace(" ", "-").replace("/", "-of-")

    def command(self, model: str, options: CompareOptions) -> str:
        """That makes it; what came as data in memory cannot be named."""
        words = ["gqakit", "convert", model, "--kv-ratio", f"{self.ratio:.6g}", *self.way.flags.split()]
        words += options.words("tokens", "window", *_DATA)
        return shlex.join([*words, *(["--repair"] if self.repaired else []), "-o", self.slug])


_DATA = ("text", "dataset", "dataset_split", "dataset_column", "images", "audio", "samples", "image_size")


def trials(options: CompareOptions) -> Iterator[Trial]:
    """Every checkpoint of a comparison, way by way."""
    for chosen in options.chosen:
        for budget, ratio in options.budgets.items():
            yield Trial(chosen, budget, ratio)
    if options.repair:
        for budget, ratio in options.budgets.items():
            yield Trial(options.way("fold"), budget, ratio, repaired=True)


def scoring_command(model: str, made: str, pair: CachePair, options: CompareOptions) -> str:
    """That scores a checkpoint, or the model itself where none is named, in a cache of these types."""
    words = ["gqakit", "evaluate", model, *([made] if made else []), "--kv-cache", pair.name]
    return shlex.join([*words, *options.scored_on.words("tokens", "window", *_DATA)])
