"""The processes and devices of a run, through accelerate: the same loop runs alone, under DDP and under FSDP2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gqakit.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "gqakit-uptrain"


@dataclass(frozen=True)
class Prepared:
    """A model and its optimiser on their devices, wrapped as the launch asks."""

    accelerator: Accelerator
    student: Any
    teacher: nn.Module | None
    optimizer: Any

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's own."""
        return self.optimizer.optimizer


@contextmanager
def accelerated(device: str, precision: str, trackers: Sequence[str]) -> Iterator[Accelerator]:
    """An accelerator for one run; a single process is left as it was found.

    Args:
        device: "cpu" or "cuda". precision: "float32" or "bf16". trackers: their names.

    Raises:
        MissingDependencyError: accelerate or a tracker is not installed.
        UsageError: this process has an accelerator of another precision or device.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.tracking import get_available_trackers
    except ImportError as error:
        raise MissingDependencyError(
            "uptraining needs the 'train' extra: pip install 'gqakit[train]'"
        ) from error
    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in trackers:
        if name not in available:
            raise MissingDependencyError(f"--log {name} needs the package {name}: pip install {name}")
    ours = AcceleratorState._shared_state == {}
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="bf16" if precision == "bf16" else "no",
            log_with=list(trackers) or None,
            project_dir="." if trackers else None,
        )
    except ValueError as error:
        raise UsageError(
            f"accelerate cannot be set up for --device {device} --dtype {precision}: {error}"
        ) from error
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        if ours and not accelerator.use_distributed:
            AcceleratorState._reset_state()


def prepare(
    accelerator: Accelerator,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    blocks: Sequence[str],
) -> Prepared:
    """Place and wrap the models.

    Args:
        blocks: class names of the transformer blocks, each of which FSDP2 shards on its own.

    Raises:
        UsageError: the launch asks for a kind of distribution that was never run.
    """
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        raise UsageError(f"uptraining runs alone, under DDP and under FSDP2; this launch asks for {kind}")
    if kind == "FSDP" and not accelerator.is_fsdp2:
        raise UsageError("uptraining shards with FSDP2; set fsdp_version: 2 in the accelerate config")
    if accelerator.is_fsdp2:
        plugin: Any = accelerator.state.fsdp_plugin
        if not plugin.transformer_cls_names_to_wrap:
            plugin.transformer_cls_names_to_wrap = list(blocks)
    student, prepared = accelerator.prepare(student, optimizer)
    if teacher is not None:
        teacher = _place_teacher(accelerator, teacher.requires_grad_(False).eval())
    return Prepared(accelerator, student, teacher, prepared)


def _place_teacher(accelerator: Accelerator, teacher: nn.Module) -> nn.Module:
    """The frozen teacher: sharded where the student is, else whole on each device. It needs no gradient averaging."""
    if accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        return fsdp2_prepare_model(accelerator, teacher)
    return teacher.to(accelerator.device)


def from_main(accelerator: Accelerator, value: Any) -> Any:
    """The first process's value, in every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if accelerator.use_distributed else value


def trained_weights(prepared: Prepared) -> dict[str, Tensor]:
    """What training changes, whole and on the CPU, by its names in the unwrapped model; empty but on rank 0.

    These are the parameters that train, and the buffers of modules that say `keeps_statistics`.

    Every process must call it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: Any = get_model_state_dict(prepared.student, options=options)
    if not prepared.accelerator.is_main_process:
        return {}
    model = prepared.accelerator.unwrap_model(prepared.student)
    training = [name for name, p in model.named_parameters() if p.requires_grad]  # tied ones once
    return {name: state[name] for name in [*training, *statistics(model)]}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that training changes, by name: those of modules that say `keeps_statistics`."""
    return {
        f"{path}.{name}": buffer
        for path, module in model.named_modules()
        if getattr(module, "keeps_statistics", False)
        for name, buffer in module.named_buffers(recurse=False)
    }


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what `trained_weights` gave into a model that is not wrapped."""
    named = {**dict(model.named_parameters()), **statistics(model)}
    with torch.no_grad():
        for name, tensor in weights.items():
            named[name].copy_(tensor)


def restore_weights(prepared: Prepared, weights: Mapping[str, Tensor]) -> None:
    """The inverse of `trained_weights`; only rank 0's argument counts. Every process must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    model = prepared.accelerator.unwrap_model(prepared.student)
    if not prepared.accelerator.use_distributed:
        put_weights(model, weights)
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(prepared.student, dict(weights), options=options)


def optimiser_tensors(prepared: Prepared) -> dict[str, Tensor]:
    """AdamW's two moments and step counts, named `<parameter>|<which>`; empty but on rank 0.

    Every process must call it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: Any = get_optimizer_state_dict(prepared.student, prepared.bare_optimizer, options=options)
    if not prepared.accelerator.is_main_process:
        return {}
    return {
        f"{name}|{which}": tensor for name, each in state["state"].items() for which, tensor in each.items()
    }


def restore_optimiser(prepared: Prepared, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; only rank 0's argument counts. Every process must call it."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    named: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, which = key.rpartition("|")
        named.setdefault(name, {})[which] = tensor
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    # The groups hold nothing but options, which the run has from elsewhere; the present ones name the parameters.
    state: Any = get_optimizer_state_dict(prepared.student, prepared.bare_optimizer, options=whole)
    state["state"] = named
    options = StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=prepared.accelerator.use_distributed
    )
    set_optimizer_state_dict(prepared.student, prepared.bare_optimizer, state, options=options)
