"""Options of an evaluation. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.models.run_options import KV_CACHE, RUN, MemoryOptions
from gqakit.options import Options, option

TOKENS = 4096
TASKS = "Tasks"


@dataclass(frozen=True)
class TaskOptions(Options):
    """Questions with several answers to score on."""

    tasks: tuple[str, ...] = option(
        (), "Tasks of lm-eval by name, or task files (.jsonl, .yaml), with commas between.", panel=TASKS
    )
    limit: int | None = option(
        None, "Most questions of each task, from its beginning.", panel=TASKS, at_least=1
    )

    def problems(self) -> Iterator[str]:
        """A limit of nothing."""
        yield from super().problems()
        if self.limit is not None and not self.tasks:
            yield "`limit` counts questions of `tasks`, which are not given"


@dataclass(frozen=True)
class EvaluateOptions(TaskOptions, DataOptions, MemoryOptions):
    """What checkpoints are compared on, and how they are run."""

    dataset_split: str = option("test", "Which split of the dataset.", panel=DATA)
    tokens: int = option(TOKENS, "Most tokens of text, in whole windows.", panel=DATA, at_least=1)
    window: int = option(WINDOW, "Tokens per window, each scored alone.", panel=DATA, at_least=2)
    kv_cache: str | None = option(None, KV_CACHE, panel=RUN)

    batch_size: int = option(1, "Answers of a task that run at a time.", panel=TASKS, at_least=1)

    def problems(self) -> Iterator[str]:
        """Tasks together with what they have no use for."""
        yield from super().problems()
        if not self.tasks:
            return
        if self.names_data:
            given = ", ".join(f"`{name}`" for name, value in self._named().items() if value is not None)
            yield f"`tasks` have their own questions; leave out {given}"
        if self.blockwise == "always":
            yield "`tasks` run whole models and not block by block; leave out `blockwise=always`"
