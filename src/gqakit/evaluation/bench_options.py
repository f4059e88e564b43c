"""Options of `bench`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gqakit.models.run_options import RunOptions
from gqakit.options import option

TIMED = "What is timed"


@dataclass(frozen=True)
class BenchOptions(RunOptions):
    """What is timed."""

    contexts: tuple[str, ...] = option(
        ("512", "2048"), "Tokens that are read before writing, with commas between.", panel=TIMED
    )
    batches: tuple[str, ...] = option(("1",), "Sequences at a time, with commas between.", panel=TIMED)
    new_tokens: int = option(8, "Tokens written in each round.", panel=TIMED, at_least=1)
    rounds: int = option(5, "Rounds, in which all checkpoints take turns.", panel=TIMED, at_least=1)

    def problems(self) -> Iterator[str]:
        """Sizes that are none."""
        yield from super().problems()
        for name in ("contexts", "batches"):
            if not all(size.isdigit() and int(size) > 0 for size in getattr(self, name)) or not getattr(
                self, name
            ):
                yield f"`{name}` is {','.join(getattr(self, name))!r}, expected whole numbers above 0"
