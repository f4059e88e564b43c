"""The options of `correlate`. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqakit.core.merging import RULES
from gqakit.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from gqakit.planning.make import MeasureOptions

_SAMPLED = "What is sampled"
_MEASURED = "How losses are measured"


def _about(help: str, panel: str = _SAMPLED, choices: Sequence[str] = ()) -> dict[str, Any]:
    return {"help": help, "panel": panel, "choices": tuple(choices)}


@dataclass(frozen=True)
class CorrelateOptions:
    """Which groupings of which layers are tried, and how their losses are measured.

    Raises:
        UsageError: for an unknown merge rule or a number that is too small.
    """

    moments: Path = field(metadata=_about("Moments made by `gqakit calibrate`."))
    merge: str = field(
        default="fold",
        metadata=_about("The merge rule that is used; its error is one of the scores.", choices=tuple(RULES)),
    )
    kv_heads: tuple[int, ...] = field(
        default=(), metadata=_about("Numbers of heads to group to. Default: every number below the source's.")
    )
    layers: int = field(
        default=8, metadata=_about("Layers at most, evenly spaced from the first to the last.")
    )
    random_groupings: int = field(
        default=8,
        metadata=_about("Random groupings per layer and number of heads, besides the searched ones."),
    )
    stacks: tuple[str, ...] = field(
        default=(),
        metadata=_about("Kinds of attention layers to sample. Default: those that a plan would convert."),
    )
    seed: int = field(
        default=0, metadata=_about("Of the random groupings, of the searches and of the bootstrap.")
    )
    measure: MeasureOptions | None = field(
        default=None, metadata=_about("What the model runs on to measure losses.", _MEASURED)
    )

    def __post_init__(self) -> None:
        if self.merge not in RULES:
            raise unknown_name("merge rule", self.merge, RULES)
        for name, least in (("layers", 1), ("random_groupings", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"`{name}` = {getattr(self, name)} must be at least {least}")
