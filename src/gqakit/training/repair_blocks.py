"""A model of which one transformer block at a time has weights: transformers' own modules, run block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gqakit.checkpoint import Checkpoint
from gqakit.families import ModelSpec
from gqakit.runtime import register


@dataclass(frozen=True)
class Block:
    """One block with its weights.

    Attributes:
        module: the block. attention: the attention module in it.
        projections: weights and biases of the linear maps in the attention module, by the checkpoint's names. What
            normalises queries and keys is not among them.
        arguments: what the block is called with besides the hidden states.
    """

    module: nn.Module
    attention: nn.Module
    projections: dict[str, nn.Parameter]
    arguments: dict[str, Any]

    def run(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What attention adds to the residual stream, and what leaves the block; both as `hidden`, `[B, T, D]`."""
        seen: list[Tensor] = []
        with _hook(self.attention, lambda module, args, output: seen.append(_first(output))):
            out = _first(self.module(hidden, **self.arguments))
        return seen[0], out

    def attend(self, hidden: Tensor) -> Tensor:
        """What attention adds to the residual stream; the rest of the block is not run."""
        seen: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(_first(output))
            raise _Stopped

        with _hook(self.attention, stop), suppress(_Stopped):
            self.module(hidden, **self.arguments)
        return seen[0]


class Blocks:
    """The blocks of a checkpoint, in float32. Memory is one block, or the embeddings while `entering` runs.

    Args:
        checkpoint: stock or grouped.
        spec: of the source; its module paths hold for what was made of it too.
        device: "cpu" or "cuda".
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, device: str) -> None:
        self._checkpoint, self._spec, self._device = checkpoint, spec, device
        self._model = _without_weights(checkpoint, device)
        self._arguments: list[dict[str, Any]] = []

    def entering(self, windows: Tensor) -> Iterator[Tensor]:
        """What enters the first block, `[1, T, D]` for each window. Only after this `block` can be used."""
        blocks = [self._spec.block(self._model, layer) for layer in range(self._spec.num_layers)]
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        base = self._model.base_model
        outside = {id(parameter) for parameter in base.parameters()} - inside
        names = [name for name, parameter in self._model.named_parameters() if id(parameter) in outside]
        seen: list[tuple[Tensor, dict[str, Any]]] = []

        def pass_on(*args: Any, **kwargs: Any) -> Tensor:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            seen.append((hidden, kwargs))
            return hidden

        with self._weights(names), _replaced_forward(blocks, pass_on):
            for window in windows:
                seen.clear()
                base(input_ids=window[None].to(self._device), use_cache=False)
                self._arguments = [kwargs for _, kwargs in seen]
                yield seen[0][0]

    @contextmanager
    def block(self, layer: int, changed: dict[str, Tensor] | None = None) -> Iterator[Block]:
        """One block; its weights go when the context ends.

        Args:
            layer: which.
            changed: tensors to take instead of the checkpoint's, by name.
        """
        module = self._spec.block(self._model, layer)
        attention = self._spec.attention_module(self._model, layer)
        prefix = next(name for name, found in self._model.named_modules() if found is module)
        names = [f"{prefix}.{name}" for name, _ in module.named_parameters()]
        with self._weights(names, changed or {}):
            owners = [each for each in attention.modules() if _is_projection(each)]
            ours = {id(parameter) for owner in owners for parameter in owner.parameters(recurse=False)}
            projections = {n: p for n, p in self._model.named_parameters() if id(p) in ours}
            yield Block(module, attention, projections, self._arguments[layer])

    @contextmanager
    def _weights(self, names: list[str], changed: dict[str, Tensor] | None = None) -> Iterator[None]:
        """The model with some of its parameters filled, frozen."""
        kept = {name: self._model.get_parameter(name) for name in names}
        try:
            for name in names:
                tensor = (changed or {}).get(name)
                tensor = self._checkpoint.load(name) if tensor is None else tensor
                self._set(name, nn.Parameter(tensor.to(self._device, torch.float32), requires_grad=False))
            yield
        finally:
            for name, parameter in kept.items():
                self._set(name, parameter)

    def _set(self, name: str, parameter: nn.Parameter) -> None:
        path, _, leaf = name.rpartition(".")
        self._model.get_submodule(path)._parameters[leaf] = parameter


class _Stopped(Exception):  # noqa: N818  # control flow, never seen outside
    """Ends a block once its attention is known."""


def _without_weights(checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    """The model with every parameter on the meta device and every buffer (rotary frequencies) real."""
    register()
    config = AutoConfig.from_pretrained(str(checkpoint.path), local_files_only=True)
    own = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        own(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    finally:
        nn.Module.register_parameter = own
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model.eval()


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _hook(module: nn.Module, function: Any) -> Iterator[None]:
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced_forward(modules: list[nn.Module], forward: Any) -> Iterator[None]:
    try:
        for module in modules:
            module.forward = forward
        yield
    finally:
        for module in modules:
            del module.forward
