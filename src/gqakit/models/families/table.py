"""The families as a table: what each takes, what may be converted in it, and what it can reach."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from gqakit.models.engines import names_that_run
from gqakit.models.families import FAMILIES
from gqakit.models.families.base import Family

_RUNS_ON = {
    "text": "text",
    "embedding": "text (embeddings)",
    "image": "images",
    "speech": "speech",
    "translation": "text to text",
    "pair": "images and text",
}
_LAYOUT = {
    "split": "apart",
    "blocks": "fused, in blocks",
    "interleaved": "fused, in turns",
    "quarters": "fused, in quarters",
}


@dataclass(frozen=True)
class FamilyEntry:
    """One family. `stacks` are its kinds of attention layers, `default` those that are converted by default.

    `engines` run its grouped checkpoints, some only where groups have one size or the output matrix is the embeddings.
    """

    family: str
    runs_on: str
    stacks: tuple[str, ...]
    default: tuple[str, ...]
    layout: str
    keys: str
    formats: tuple[str, ...]
    engines: tuple[str, ...]


HEADER = (
    *("family", "runs on", "attention layers", "converted by default", "q, k, v", "keys", "formats"),
    "grouped runs on",
)


def families() -> list[FamilyEntry]:
    """Every family that is registered."""
    return [_entry(family) for family in FAMILIES.values()]


def rows() -> list[tuple[str, ...]]:
    """The entries as cells, in the order of `HEADER`."""
    return [
        tuple(cell if isinstance(cell, str) else ", ".join(cell) for cell in astuple(entry))
        for entry in families()
    ]


def markdown() -> str:
    """The table of docs/families.md."""
    lines = [HEADER, ("---",) * len(HEADER), *rows()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _entry(family: Family) -> FamilyEntry:
    stacks = tuple(stack.name for stack in family.stacks)
    cached = tuple(stack.name for stack in family.stacks if stack.cached)
    return FamilyEntry(
        family=family.model_type,
        runs_on="text and images" if family.texts else _RUNS_ON[family.task],
        stacks=stacks,
        default=cached or stacks,
        layout=_LAYOUT[family.layout] if isinstance(family.layout, str) else "by the config",
        keys=_keys(family),
        formats=("uniform", "grouped") if family.num_kv_heads is not None else ("grouped",),
        engines=tuple(names_that_run("grouped", family.model_type, equal=True).split(", ")),
    )


def _keys(family: Family) -> str:
    if family.key_norm and family.norm_switch is None:
        return "normalised behind the rotation" if family.norm_after_rope else "normalised"
    if callable(family.positions):
        return "rotary, or a bias for each head"
    if family.positions == "rotary":
        some = ", in some models normalised" if family.norm_switch else ""
        share = "" if family.rotary_share == 1 else f" in {family.rotary_share:g} of the channels"
        return f"rotary{share}{some}"
    return {"none": "free", "bias": "free, with a bias for each head"}[family.positions]
