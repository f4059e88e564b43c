"""Options of `compare`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gqakit.calibration.options import TOKENS
from gqakit.comparison.ways import NAMED, Way, way
from gqakit.data.options import DATA, WINDOW, DataOptions
from gqakit.errors import UsageError
from gqakit.evaluation.options import TOKENS as SCORED
from gqakit.evaluation.options import EvaluateOptions, TaskOptions
from gqakit.options import option
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.options import HOW, LossOptions, StackOptions

COMPARED = "What is compared"
OUTPUT = "Output"
PROMPT = "The best way to learn how to cook is"


@dataclass(frozen=True)
class CompareOptions(StackOptions, TaskOptions, LossOptions, DataOptions):
    """Ways × budgets, on what data, and what else is made of each."""

    tokens: int = option(TOKENS, "Most tokens to calibrate on, in whole windows.", panel=DATA, at_least=1)
    window: int = option(WINDOW, "Tokens per window.", panel=DATA, at_least=2)
    evaluate_text: Any = option(
        None, "Text to score on; may be repeated. Default: the held-out text that comes with gqakit.",
        panel=DATA, many=True,
    )  # fmt: skip
    evaluate_images: Any = option(None, "Images to score on, for image models.", panel=DATA)
    evaluate_audio: Any = option(
        None, "Recordings to score on, for speech models; may be repeated.", panel=DATA, many=True
    )
    evaluate_tokens: int = option(
        SCORED, "Most tokens to score on, in whole windows.", panel=DATA, at_least=1
    )

    ways: tuple[str, ...] = option(
        tuple(NAMED), f"Ways, with commas between: {', '.join(NAMED)}, or METHOD+MERGE of any pair.",
        panel=COMPARED,
    )  # fmt: skip
    kv_ratios: tuple[str, ...] = option(
        ("3/4", "1/2", "1/3"), "Budgets, with commas between: KV-cache bytes after / before.", panel=COMPARED
    )
    kv_cache: Any = option(
        None, "Score everything with a cache of this type too: one, or those of keys and of values, such as q8_0,q4_0 "
        "(docs/kv-cache.md); may be repeated; f16 for none. Default: q8_0 and q4_0+h where the model's heads fit.",
        panel=COMPARED, many=True,
    )  # fmt: skip
    repair: bool = option(
        False, "Also each conversion by fold, repaired layer by layer (minutes each).", panel=COMPARED
    )
    prompt: str = option(PROMPT, "Continued by each checkpoint that writes text.", panel=COMPARED)
    max_new_tokens: int = option(40, "Most tokens of a continuation; 0 for none.", panel=COMPARED, at_least=0)

    allocation: str = option(
        "knapsack",
        "How every way spends its budget over the layers.",
        panel=HOW,
        choices=("auto", *ALLOCATIONS),
    )
    kv_maps: str = option(
        "shared", "One grouping for keys and values, or separate ones.", panel=HOW,
        choices=("shared", "separate"),
    )  # fmt: skip
    seed: int = option(0, "Of everything random.", panel=HOW, at_least=0)

    keep: bool = option(
        False, "Keep the converted checkpoints; else each goes when it was scored.", panel=OUTPUT
    )
    overwrite: bool = option(False, "Start over where the directory holds another comparison.", panel=OUTPUT)

    def problems(self) -> Iterator[str]:
        """Ways and budgets that are none."""
        yield from super().problems()
        for name in self.ways:
            try:
                way(name)
            except UsageError as error:
                yield str(error)
        for kind in ("images", "audio"):
            if getattr(self, kind) is not None and getattr(self, f"evaluate_{kind}") is None:
                yield f"`evaluate_{kind}` must be given: what is scored must have no part in the calibration"
        for ratio in self.kv_ratios:
            try:
                good = 0 < Fraction(ratio) <= 1
            except (ValueError, ZeroDivisionError):
                good = False
            if not good:
                yield f"`kv_ratios` has {ratio!r}, expected shares above 0 and at most 1, such as 1/2 or 0.25"
        if not self.ways or not self.kv_ratios:
            yield "`ways` and `kv_ratios` need one entry at least"

    @property
    def scored_on(self) -> EvaluateOptions:
        """What every checkpoint is scored on; a long calibration window need not fit the held-out text."""
        return EvaluateOptions(
            text=self.evaluate_text, images=self.evaluate_images, audio=self.evaluate_audio,
            samples=self.samples, image_size=self.image_size, tokens=self.evaluate_tokens,
            window=min(self.window, WINDOW), device=self.device,
        )  # fmt: skip

    @property
    def questions(self) -> EvaluateOptions | None:
        """Which tasks, where there are any."""
        return EvaluateOptions(tasks=self.tasks, limit=self.limit, device=self.device) if self.tasks else None

    @property
    def chosen(self) -> tuple[Way, ...]:
        """The ways, each once."""
        return tuple(self.way(name) for name in dict.fromkeys(self.ways))

    def way(self, name: str) -> Way:
        """A way with the options that all share."""
        return way(name, allocation=self.allocation, kv_maps=self.kv_maps, seed=self.seed)

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets by the names that they were given with."""
        return {ratio: float(Fraction(ratio)) for ratio in self.kv_ratios}
