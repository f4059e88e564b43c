"""Making `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the grouped families.

Importing this file imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import wrapt

from gqakit.runtime.families import CLASS_PREFIX_OF_FAMILY


def register() -> None:
    """Register configs and models now. May be called any number of times. Imports transformers and torch."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    configuration = importlib.import_module("gqakit.runtime.configuration_gqakit")
    modeling = importlib.import_module("gqakit.runtime.modeling_gqakit")
    for prefix in CLASS_PREFIX_OF_FAMILY.values():
        config = getattr(configuration, f"Gqakit{prefix}Config")
        AutoConfig.register(config.model_type, config, exist_ok=True)
        config.register_for_auto_class("AutoConfig")  # save_pretrained then writes the model code too
        for auto, suffix in ((AutoModel, "Model"), (AutoModelForCausalLM, "ForCausalLM")):
            model = getattr(modeling, f"Gqakit{prefix}{suffix}")
            auto.register(config, model, exist_ok=True)
            model.register_for_auto_class(auto.__name__)


def register_lazily() -> None:
    """Register on the first use of a grouped `model_type`, whether transformers is imported yet or not.

    May be called any number of times. Imports neither torch nor transformers.
    """
    wrapt.register_post_import_hook(_announce, "transformers.models.auto.configuration_auto")


def _announce(configuration_auto: ModuleType) -> None:
    """Put a stand-in for each config class where `AutoConfig` looks, unless the class is there already.

    The classes themselves cannot be imported yet: this runs in the middle of transformers' own imports, which
    go in circles through the auto classes.
    """
    mapping = configuration_auto.CONFIG_MAPPING
    for family in CLASS_PREFIX_OF_FAMILY:
        model_type = f"gqakit_{family}"
        if model_type not in mapping:
            mapping.register(model_type, _ConfigOnFirstUse(model_type))


class _ConfigOnFirstUse:
    """Stands for a config class. Asked for anything, it registers everything and lets the class answer.

    A model's config is always made first, so the models are registered by the time they are looked up.
    """

    def __init__(self, model_type: str) -> None:
        self._model_type = model_type

    def _config_class(self) -> Any:
        register()
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return CONFIG_MAPPING[self._model_type]

    def __getattr__(self, name: str) -> Any:
        if name == "_model_type":  # asked for by pickle and copy before it is set
            raise AttributeError(name)
        return getattr(self._config_class(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._config_class()(*args, **kwargs)
