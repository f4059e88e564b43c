"""Whether transformers would run a checkpoint as it is described, found without reading a weight.

Transformers builds the model of the config, without memory for its weights. A bias that its code does not add, a tensor that
it would fill with random numbers, a size that it would not load or a rotary embedding that it does not know shows before
anything is merged.
"""

from __future__ import annotations

from gqakit.errors import FamilyError
from gqakit.models.architectures import architecture
from gqakit.models.families.base import ROLES
from gqakit.models.load import check_shapes
from gqakit.models.source import Source


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
    architecture(source.checkpoint.config, strict=strict)
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
