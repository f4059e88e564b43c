"""Options of local repair. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.models.run_options import REPORT, UPLOAD, MemoryOptions, StackOptions
from gqakit.options import REQUIRED, Options, option

HOW = "How"
AFTER = "Afterwards"
OUTPUT = "Output"


@dataclass(frozen=True)
class FitOptions(Options):
    """How much to repair."""

    tokens: int = option(32768, "Most tokens of text to fit on, in whole windows.", panel=DATA, at_least=1)
    window: int = option(WINDOW, "Tokens per window.", panel=DATA, at_least=2)
    steps: int = option(160, "Steps of Adam per layer, 512 tokens each.", panel=HOW, at_least=1)
    learning_rate: float = option(
        0.1,
        "Of Adam, as a share of each tensor's root mean square, times the square root of the layer's error.",
        panel=HOW,
        above=0,
    )
    seed: int = option(0, "Of the order of windows.", panel=HOW, at_least=0)
    kv_cache: str | None = option(
        None, "Round keys and values in the loop as a cache of these types does, such as q8_0,q4_0. Default: the plan's.",
        panel=HOW,
    )  # fmt: skip


@dataclass(frozen=True)
class RepairOptions(FitOptions, StackOptions, DataOptions, MemoryOptions):
    """Everything that `repair` takes besides the conversion and the output."""

    source: str = option(REQUIRED, "The model that it was made of: directory or hub name.", panel=HOW)
    stacks: tuple[str, ...] = option(
        (), "Of the kinds of attention layers that were converted, those to repair. Default: all.", panel=HOW
    )
    evaluate: bool = option(
        True, "Measure the loss before and after, and state it in the model card, where the model runs on text.",
        panel=AFTER, flags=("--evaluate/--no-evaluate",),
    )  # fmt: skip
    evaluate_text: Any = option(
        None, "Text to measure on; may be repeated. Default: the held-out text that comes with gqakit.",
        panel=AFTER, many=True,
    )  # fmt: skip
    overwrite: bool = option(
        False, "Replace a checkpoint in the output directory, and an unfinished repair with other options.",
        panel=OUTPUT,
    )  # fmt: skip
    push_to_hub: str | None = option(None, UPLOAD, panel=OUTPUT)
    report: Path | None = option(None, REPORT, panel=OUTPUT)

    def problems(self) -> Iterator[str]:
        """A page of scores without scores."""
        yield from super().problems()
        if self.report is not None and not self.evaluate:
            yield "`report` shows what was measured, and `evaluate=False` measures nothing"
