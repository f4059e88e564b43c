"""Making transformers' auto classes know the grouped families.

Importing this file imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from gqakit.models.families.base import Family


def register(model_type: str | None = None) -> None:
    """Register a grouped family's config and models now. May be called any number of times.

    Imports transformers and torch.

    Args:
        model_type: of the grouped checkpoint, `gqakit_...`; any other is left alone, None is every family.
    """
    from gqakit.models.families import FAMILIES
    from gqakit.models.spec import GROUPED_PREFIX

    for family in FAMILIES.values():
        if model_type in (None, f"{GROUPED_PREFIX}{family.model_type}"):
            _register(family)


def _register(family: Family) -> None:
    import transformers

    from gqakit.models.architectures import every_auto_class
    from gqakit.models.remote_code import configuration, modeling

    _ship_code_on_save(configuration.GroupedConfig)
    config = configuration.config_class(f"{configuration.PREFIX}{family.config}")
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto_name, name in family.classes.items():
        model = modeling.model_class(f"{configuration.PREFIX}{name}")
        getattr(transformers, auto_name).register(config, model, exist_ok=True)
    for auto_name, base in every_auto_class(family.config):
        if auto_name not in family.classes:
            model = modeling.model_class(f"{configuration.PREFIX}{base.__name__}")
            getattr(transformers, auto_name).register(config, model, exist_ok=True)
    _share_class_names(family.model_type)
    _share_processors(getattr(transformers, family.config), config)


def _share_class_names(model_type: str) -> None:
    """Have the lists of class names by task know the grouped classes: some pipelines go by them."""
    from transformers.models.auto import modeling_auto

    from gqakit.models.architectures import PREFIX
    from gqakit.models.spec import GROUPED_PREFIX

    for name, known in vars(modeling_auto).items():
        listed = name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")  # not those of configs
        found = known.get(model_type) if listed else None
        if found is not None:
            ours = PREFIX + found if isinstance(found, str) else tuple(PREFIX + each for each in found)
            known[f"{GROUPED_PREFIX}{model_type}"] = ours


def _share_processors(base: Any, grouped: Any) -> None:
    """Have the auto classes of tokenizers and processors find for a grouped config what they find for its base."""
    for module, mapping in _PROCESSORS.items():
        known: Any = getattr(importlib.import_module(f"transformers.models.auto.{module}"), mapping, None)
        if known is not None and (found := known.get(base, None)) is not None:
            known.register(grouped, found, exist_ok=True)


_PROCESSORS = {
    "tokenization_auto": "TOKENIZER_MAPPING",
    "image_processing_auto": "IMAGE_PROCESSOR_MAPPING",
    "feature_extraction_auto": "FEATURE_EXTRACTOR_MAPPING",
    "video_processing_auto": "VIDEO_PROCESSOR_MAPPING",
    "processing_auto": "PROCESSOR_MAPPING",
}


def _ship_code_on_save(grouped_config: Any) -> None:
    """Have `save_pretrained` write the model code too, so that what it writes loads without gqakit.

    Transformers' `register_for_auto_class` would copy the code as it lies here, without the suffix. Models save
    their configs as well, so theirs is the one method to extend. Classes that come from a checkpoint's own code
    have the suffix, and transformers copies them by itself.
    """
    if "save_pretrained" in vars(grouped_config):
        return

    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        from gqakit.models.architectures import architecture
        from gqakit.models.families import FAMILIES
        from gqakit.models.shipping import auto_map, shipped_code

        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        family = FAMILIES[self.gqakit["base_model_type"]]
        for name, content in shipped_code(family.model_type).items():
            (folder / name).write_bytes(content)
        self.auto_map = auto_map(family, architecture(self.to_dict()))
        return super(grouped_config, self).save_pretrained(save_directory, *args, **kwargs)

    grouped_config.save_pretrained = save_pretrained


def register_lazily() -> None:
    """Register on the first use of a grouped `model_type`, whether transformers is imported yet or not.

    May be called any number of times. Imports neither torch nor transformers.
    """
    wrapt.register_post_import_hook(_announce, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(_share_target_modules, "peft.utils.constants")


def _share_target_modules(constants: ModuleType) -> None:
    """Have PEFT find for a grouped family the modules that it adapts by default in the family: it goes by `to_dict`."""
    from gqakit.models.families import FAMILIES
    from gqakit.models.spec import GROUPED_PREFIX

    for name, targets in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(targets, dict):
            known = {family: targets[family] for family in FAMILIES if family in targets}
            targets.update({f"{GROUPED_PREFIX}{family}": modules for family, modules in known.items()})


def _announce(configuration_auto: ModuleType) -> None:
    """Put a stand-in for each config class where `AutoConfig` looks, unless the class is there already.

    The classes themselves cannot be imported yet: this runs in the middle of transformers' own imports, which
    go in circles through the auto classes.
    """
    from gqakit.models.families import FAMILIES
    from gqakit.models.spec import GROUPED_PREFIX

    mapping = configuration_auto.CONFIG_MAPPING
    for family in FAMILIES:
        model_type = f"{GROUPED_PREFIX}{family}"
        if model_type not in mapping:
            mapping.register(model_type, _ConfigOnFirstUse(model_type))


class _ConfigOnFirstUse:
    """Stands for a config class. Asked for anything, it registers the family and lets the class answer.

    A model's config is always made first, so the models are registered by the time they are looked up.
    """

    def __init__(self, model_type: str) -> None:
        self._model_type = model_type

    def _config_class(self) -> Any:
        register(self._model_type)
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return CONFIG_MAPPING[self._model_type]

    def __getattr__(self, name: str) -> Any:
        if name == "_model_type":  # asked for by pickle and copy before it is set
            raise AttributeError(name)
        return getattr(self._config_class(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._config_class()(*args, **kwargs)
