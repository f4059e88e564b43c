"""Options of an evaluation. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.models.run_options import KV_CACHE, RUN, MemoryOptions
from gqakit.options import option

TOKENS = 4096


@dataclass(frozen=True)
class EvaluateOptions(DataOptions, MemoryOptions):
    """What checkpoints are compared on, and how they are run."""

    dataset_split: str = option("test", "Which split of the dataset.", panel=DATA)
    tokens: int = option(TOKENS, "Most tokens of text, in whole windows.", panel=DATA, at_least=1)
    window: int = option(WINDOW, "Tokens per window, each scored alone.", panel=DATA, at_least=2)
    kv_cache: str | None = option(None, KV_CACHE, panel=RUN)
