"""Whether transformers would run a checkpoint as it is described, found without reading a weight.

Transformers builds the model of the config, without memory for its weights. A bias that its code does not add, a tensor that
it would fill with random numbers, a size that it would not load or a rotary embedding that it does not know shows before
anything is merged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from gqakit.errors import FamilyError
from gqakit.models.architectures import architecture
from gqakit.models.families.base import ROLES
from gqakit.models.load import check_shapes
from gqakit.models.source import Source

LOG = logging.getLogger("gqakit")


def check_convertible(source: Source, *, strict: bool = False) -> None:
    """Raise unless the model that transformers makes of the config has just the attention tensors that are converted.

    Every command that plans, measures or carries out a conversion asks this before any work.

    Args:
        source: what is to be converted.
        strict: refuse a config that names a class which transformers does not have, as a grouped checkpoint must name it.

    Raises:
        UsageError: it is grouped already.
        CheckpointError: transformers refuses the config, or tensors of the model are missing or of another shape.
        FamilyError: transformers' attention has no place for a tensor that the checkpoint has for it.
    """
    import torch

    from gqakit.models.blockwise.weights import Weights

    source.check_not_grouped()
    kind = architecture(source.checkpoint.config, strict=strict)
    if own := _own_code(source.checkpoint.config):
        LOG.warning(
            "%s: config.json names model code of its own (%s), which is not read; what is converted is transformers' %s",
            source.name,
            own,
            kind,
        )
    if source.checkpoint.config.get("quantization_config"):
        return  # where weights are codes, transformers has other modules
    weights = Weights(source.checkpoint, torch.float32, "cpu")
    spec, ignored = source.spec, []
    for layer in range(spec.num_layers):
        modules = {role: spec.projection(weights.model, layer, role) for role in ROLES}
        names = {spec.tensor(layer, role, "bias"): modules[role] for role in spec.biased}
        ignored += [name for name, module in names.items() if module.bias is None]
    if ignored:
        more = f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""
        raise FamilyError(
            f"{source.path}: has {ignored[0]}{more}, which transformers' {spec.family.model_type} does not add with this "
            "config.json; set the key that turns biases of attention on, or remove these tensors"
        )
    check_shapes(source.path, weights.of_other_shape())
    if beside := list(_beside_attention(source, weights.unused, weights.model)):
        more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
        raise FamilyError(
            f"{source.path}: has {beside[0]}{more}, which transformers' {kind} has no place for, so that the model it was "
            "trained as has another attention. If it does without them, remove these tensors"
        )


def _own_code(config: dict[str, Any]) -> str | None:
    """The model class in a checkpoint's own code that transformers runs with `trust_remote_code=True`, if there is one."""
    classes = config.get("auto_map")
    named = classes.items() if isinstance(classes, dict) else ()
    return next((str(name) for auto, name in named if str(auto).startswith("AutoModel")), None)


def _beside_attention(source: Source, unused: Iterable[str], model: Any) -> Iterator[str]:
    """Tensors that no parameter is made of and that stand in a transformer block beside an attention layer.

    Those below such a layer are known to the family, or its description refused them; some more transformers itself
    leaves aside.
    """
    spec = source.spec
    homes, blocks = set(), set()
    for stack, index in spec.sites:
        home = f"{spec.prefix}{(stack.stored_home or stack.home).format(layer=index)}"
        homes.add(f"{home}.")
        blocks.add(home[: home.index(f".{index}.") + len(f".{index}.")])
    aside = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in unused:
        speaks = re.search("attn|attention", name.lower()) and not any(
            re.search(each, name) for each in aside
        )
        if speaks and name.startswith(tuple(blocks)) and not name.startswith(tuple(homes)):
            yield name
