"""Where an exported model comes from: its base model and licence, for a model card and for GGUF."""

from __future__ import annotations

from typing import Any

from gqakit import __version__
from gqakit.conversion.model_card import front_matter, stated_in_card
from gqakit.exporters.source import ExportSource

_DONE = {
    "pad": "groups of query heads were padded with heads that nothing reads",
    "nemotron-nas": "every layer states its own number of query heads per KV head, as DeciLM checkpoints do",
    "equalise": "KV heads were written again until all groups had one size",
}


def lineage(source: ExportSource) -> dict[str, Any]:
    """`base_model`, `license`, `license_name` and `license_link`, as far as card or plan of the source state them.

    The base model's name with its organisation, `org/name`, goes before one without, wherever it stands.
    """
    found = stated_in_card(source.path)
    if source.plan is not None:
        planned = source.plan.source.name
        known = found.get("base_model", "")
        if not known or ("/" in planned and "/" not in known):
            found["base_model"] = planned
    return found


def export_card(source: ExportSource, how: str, title: str = "uniform") -> str:
    """The card of a grouped checkpoint written in another form, `how` (pad, equalise or nemotron-nas)."""
    known = {"base_model": source.short_name, **lineage(source)}
    body = (
        f"# {source.short_name}, {title}\n\nExported by gqakit {__version__} from the grouped checkpoint "
        f"**{source.short_name}**; {_DONE[how]}. It computes the same.\n\n"
        f"- Base model: {known['base_model']}\n"
        f"- Licence: {known.get('license') or 'that of the base model, whose card states none that could be read'}\n"
    )
    return front_matter(known) + body
