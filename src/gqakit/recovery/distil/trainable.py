"""Which parameters train, under which names a checkpoint holds them, and LoRA on top and back into the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from gqakit.errors import CheckpointError, MissingDependencyError
from gqakit.models.spec import ModelSpec
from gqakit.recovery.distil.options import UptrainOptions


def prepare_student(model: PreTrainedModel, spec: ModelSpec, options: UptrainOptions) -> nn.Module:
    """Freeze what does not train; with LoRA, put the updates in.

    Raises:
        MissingDependencyError: LoRA is asked for without `peft`.
    """
    if options.train == "lora":
        return _with_lora(model, spec, options)
    model.requires_grad_(options.train == "all")
    if options.train == "attention":
        for layer in range(spec.num_layers):
            spec.attention_module(model, layer).requires_grad_(True)
    return model


def _with_lora(model: PreTrainedModel, spec: ModelSpec, options: UptrainOptions) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            "`train=lora` needs the 'train' extra: pip install 'gqakit[train]'"
        ) from error
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=options.lora_dropout,
        target_modules=lora_targets(model, spec, options.lora_targets),
    )
    return get_peft_model(model, config)


def lora_targets(model: PreTrainedModel, spec: ModelSpec, which: str) -> list[str]:
    """Names of the linear layers that get an update, those of the blocks or of attention alone."""
    roots = [
        spec.attention_module(model, layer) if which == "attention" else spec.block(model, layer)
        for layer in range(spec.num_layers)
    ]
    inside = {id(module) for root in roots for module in root.modules() if isinstance(module, nn.Linear)}
    return [name for name, module in model.named_modules() if id(module) in inside]


def checkpoint_names(model: nn.Module, stored: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each parameter, under its first name, the names that its checkpoint has for it; tied ones may have several."""
    stored = set(stored)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {group[0]: tuple(name for name in group if name in stored) for group in names.values()}


def check_writable(
    model: PreTrainedModel, spec: ModelSpec, options: UptrainOptions, stored: Iterable[str]
) -> None:
    """Refuse to train what could not be written back; transformers renames tensors of a few families as it loads them.

    Raises:
        CheckpointError: for a parameter to train that the checkpoint has under none of its names.
    """
    names = checkpoint_names(model, stored)
    if options.train == "lora":
        wanted = [f"{name}.weight" for name in lora_targets(model, spec, options.lora_targets)]
    else:
        prepare_student(model, spec, options)
        wanted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if lost := [name for name in wanted if not names[name]]:
        hint = "; `train=attention` may do" if options.train == "all" else ""
        raise CheckpointError(
            f"the checkpoint has no tensor named {lost[0]} ({len(lost)} such of {len(wanted)} to train), which the loaded "
            f"model has: trained weights could not be written back under the checkpoint's names{hint}"
        )


def merged_weights(
    model: PreTrainedModel, spec: ModelSpec, options: UptrainOptions, trained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The trained weights under the names of the plain model's parameters, float32; LoRA is worked in.

    Args:
        model: the model as it was before training, unwrapped; with LoRA it is changed.
        trained: by name, as in the model that was trained.
    """
    if options.train != "lora":
        parameters = dict(model.named_parameters())
        return {name: tensor for name, tensor in trained.items() if name in parameters}
    targets = lora_targets(model, spec, options.lora_targets)
    wrapped: Any = prepare_student(model, spec, options)
    named: dict[str, Parameter] = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, tensor in trained.items():
            named[name].copy_(tensor)
    plain = wrapped.merge_and_unload()
    return {f"{name}.weight": plain.get_parameter(f"{name}.weight").detach() for name in targets}
