"""Options of `inspect`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.models.run_options import PRECISIONS, StackOptions
from gqakit.options import option


@dataclass(frozen=True)
class InspectOptions(StackOptions):
    """How large a cache to reckon with."""

    context: int | None = option(
        None,
        "Tokens per sequence in the cache. Default: 32,768, or as many as learned positions allow.",
        at_least=1,
    )
    batch: int = option(1, "Sequences at a time.", at_least=1)
    dtype: str | None = option(
        None, "Precision of the cache. Default: the checkpoint's own.", choices=tuple(PRECISIONS)
    )

    @property
    def precision(self) -> str | None:
        """torch's name of the precision that was asked for."""
        return None if self.dtype is None else PRECISIONS[self.dtype]
