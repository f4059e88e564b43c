"""Options of a calibration. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.models.run_options import RUN, MemoryOptions, StackOptions
from gqakit.options import option

TOKENS = 12288


@dataclass(frozen=True)
class CalibrateOptions(StackOptions, DataOptions, MemoryOptions):
    """What a model is calibrated on, and how it is run."""

    stacks: tuple[str, ...] = option(
        (),
        "Kinds of attention layers, such as decoder,cross (see `gqakit families`). Default: all.",
        panel="How",
    )
    tokens: int = option(TOKENS, "Most tokens of text, in whole windows.", panel=DATA, at_least=1)
    window: int = option(WINDOW, "Tokens per window.", panel=DATA, at_least=2)
    gradients: bool = option(
        True, "Also run the model backwards, so that what layers lose can be predicted and need not be measured.",
        panel=RUN,
    )  # fmt: skip
