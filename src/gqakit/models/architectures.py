"""Which class of transformers a checkpoint is, and what that makes of its family: any head on a known body."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from gqakit.errors import FamilyError
from gqakit.models.families import FAMILIES
from gqakit.models.families.base import Family
from gqakit.models.spec import GROUPED_PREFIX

_log = logging.getLogger(__name__)
PREFIX = "Gqakit"


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config, grouped or not; None where gqakit has none."""
    family = FAMILIES.get(str(config.get("model_type")).removeprefix(GROUPED_PREFIX))
    return None if family is None else family.holding(config).as_named(named(config))


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that is about the text model: a section of a multimodal one's, else all of it."""
    family = FAMILIES.get(str(config.get("model_type")).removeprefix(GROUPED_PREFIX))
    return config if family is None else family.part(config)


def named(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config names, as transformers calls them; none where what it says is no list."""
    names = config.get("architectures")
    return [str(name).removeprefix(PREFIX) for name in names] if isinstance(names, list) else []


def architecture(config: Mapping[str, Any], *, strict: bool = False) -> str:
    """Name of the class of transformers that a checkpoint is loaded as: the first that its config names.

    Args:
        config: of a checkpoint whose family is known.
        strict: refuse a config that names classes none of which transformers has, which else is logged.

    Raises:
        FamilyError: only if `strict`.
    """
    family = family_of(config)
    assert family is not None
    names = named(config)
    for name in names:
        if name in family.classes.values() or is_of_family(name, family):
            return name
    decodes = any(stack.cached for stack in family.stacks)
    usual = next(name for auto, name in family.classes.items() if (auto != "AutoModel") == decodes)
    if names:
        seen = f"config.json names {', '.join(names)}, no class of transformers for {family.model_type}"
        if strict:
            raise FamilyError(
                f"{seen}; set `architectures` in config.json to the class that it is, or remove it"
            )
        _log.warning("%s; it is read as %s", seen, usual)
    return usual


def is_of_family(name: str, family: Family) -> bool:
    """Whether transformers has a model class of this name for the family's configs."""
    import transformers

    kind = getattr(transformers, name, None)
    config = getattr(kind, "config_class", None)
    return isinstance(kind, type) and getattr(config, "__name__", None) == family.config


def has_no_head(config: Mapping[str, Any]) -> bool:
    """Whether the class puts out hidden states alone."""
    family = family_of(config)
    return family is not None and architecture(config) == family.classes["AutoModel"]


def is_causal_model(config: Mapping[str, Any]) -> bool:
    """Whether the class predicts the next token."""
    family = family_of(config)
    return family is not None and architecture(config) == family.classes.get("AutoModelForCausalLM")


def writes_text(config: Mapping[str, Any]) -> bool:
    """Whether the class writes text after, or in answer to, a text that it is given."""
    family = family_of(config)
    return family is not None and family.task in ("text", "translation") and class_of(config).can_generate()


def class_of(config: Mapping[str, Any]) -> Any:
    """The model class itself, the grouped one for a grouped config."""
    import transformers

    name = architecture(config)
    if not str(config.get("model_type")).startswith(GROUPED_PREFIX):
        return getattr(transformers, name)
    from gqakit.models.remote_code.modeling import model_class

    return model_class(f"{PREFIX}{name}")


def auto_classes(family: Family, name: str) -> dict[str, str]:
    """The auto classes of transformers that load a checkpoint of this class, the family's own first.

    A class that no auto class of transformers has, such as an image tower with its projection, goes by `AutoModel`.
    """
    if name in family.classes.values():
        return dict(family.classes)
    own = {auto: name for auto, kind in every_auto_class(family.config) if kind.__name__ == name}
    return {**family.classes, **(own or {"AutoModel": name})}


def every_auto_class(config_name: str) -> list[tuple[str, Any]]:
    """Each auto class of transformers that has a model for a config class, and that model class."""
    import transformers
    from transformers.models.auto import modeling_auto

    config = getattr(transformers, config_name)
    found: list[tuple[str, Any]] = []
    for auto in (name for name in modeling_auto.__all__ if name.startswith("Auto")):
        mapping = getattr(getattr(modeling_auto, auto), "_model_mapping", None)
        kinds = mapping[config] if mapping is not None and config in mapping else ()
        each = kinds if isinstance(kinds, tuple) else (kinds,)
        found += [(auto, kind) for kind in each if kind.config_class is config]
    return found
