"""The options of `correlate`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.core.merging import RULES
from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.models.run_options import KV_CACHE, StackOptions
from gqakit.options import REQUIRED, option
from gqakit.planning.options import LossOptions

SAMPLED = "What is sampled"


@dataclass(frozen=True)
class CorrelateOptions(StackOptions, LossOptions, DataOptions):
    """Which groupings of which layers are tried, and how their losses are measured."""

    statistics: Path = option(REQUIRED, "Calibration statistics made by `gqakit calibrate`.", panel=DATA)
    window: int = option(WINDOW, "Tokens per window.", panel=DATA, at_least=2)
    merge: str = option(
        "fold",
        "The merge rule that is used; its error is one of the scores.",
        panel=SAMPLED,
        choices=tuple(RULES),
    )
    kv_heads: Any = option(
        (), "Number of heads to group to; may be repeated. Default: every number below the source's.",
        panel=SAMPLED, many=True,
    )  # fmt: skip
    layers: int = option(
        8, "Most layers, evenly spaced from the first to the last.", panel=SAMPLED, at_least=1
    )
    random_groupings: int = option(
        8, "Random groupings per layer and number of heads, besides the searched ones.",
        panel=SAMPLED, at_least=0, flags=("--random",),
    )  # fmt: skip
    seed: int = option(
        0, "Of the random groupings, of the searches and of the bootstrap.", panel=SAMPLED, at_least=0
    )

    kv_cache: str | None = option(None, KV_CACHE, panel=SAMPLED)

    def problems(self) -> Iterator[str]:
        """Numbers of heads that are none."""
        yield from super().problems()
        if not all(str(count).isdigit() for count in self._counts):
            yield f"`kv_heads` is {self.kv_heads!r}, expected whole numbers"

    @property
    def _counts(self) -> tuple[Any, ...]:
        return (self.kv_heads,) if isinstance(self.kv_heads, int | str) else tuple(self.kv_heads)

    @property
    def counts(self) -> list[int]:
        """The numbers of heads that were asked for, each once."""
        return list(dict.fromkeys(map(int, self._counts)))
