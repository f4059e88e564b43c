"""Where an exported model comes from: its base model and licence, for a model card and for GGUF."""

from __future__ import annotations

import logging
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from gqakit import __version__
from gqakit.conversion.files import CARD_FILE
from gqakit.exporters.source import ExportSource

_KEPT = ("base_model", "license", "license_name", "license_link")
_LISTED = ("base_model", "license")
"""Those that may be a list: a base model may be merged of more than one."""
_DONE = {
    "pad": "groups of query heads were padded with heads that nothing reads",
    "equalise": "KV heads were written again until all groups had one size",
}


def lineage(source: ExportSource) -> dict[str, Any]:
    """`base_model`, `license`, `license_name` and `license_link`, as far as card or plan of the source state them.

    The base model's name with its organisation, `org/name`, goes before one without, wherever it stands.
    """
    path = source.path / CARD_FILE
    stated: dict[str, Any] = {}
    if path.is_file():
        try:
            stated = metadata_load(path) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            logging.getLogger(__name__).warning(
                "%s: not a model card (%s); base model and licence are not carried over", path, error
            )
    found = {name: stated[name] for name in _KEPT if _is_text(stated.get(name), several=name in _LISTED)}
    if source.plan is not None:
        planned = source.plan.source.name
        known = found.get("base_model", "")
        if not known or ("/" in planned and "/" not in known):
            found["base_model"] = planned
    return found


def uniform_card(source: ExportSource, how: str) -> str:
    """The card of a grouped checkpoint written as an ordinary one, `how` (pad or equalise)."""
    known = {"base_model": source.short_name, **lineage(source)}
    data = ModelCardData(**known, library_name="transformers", tags=["gqakit", "kv-cache"])
    body = (
        f"# {source.short_name}, uniform\n\nExported by gqakit {__version__} from the grouped checkpoint "
        f"**{source.short_name}**; {_DONE[how]}. It computes the same.\n\n"
        f"- Base model: {data.base_model}\n"
        f"- Licence: {data.license or 'that of the base model, whose card states none that could be read'}\n"
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _is_text(value: Any, *, several: bool) -> bool:
    texts = value if several and isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text for text in texts)
