"""A model of which one transformer block at a time has weights: transformers' own modules, run block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from gqakit.checkpoint import Checkpoint
from gqakit.models.architectures import class_of
from gqakit.models.families.base import ROLES
from gqakit.models.registration import register
from gqakit.models.spec import ModelSpec

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Block:
    """One block with its weights. It runs one window at a time: masks and positions are those of one.

    Attributes:
        module: the block. attention: the attention module in it.
        projections: weights and biases of q, k, v and o, by the checkpoint's names.
        call: what the block is called with besides the hidden states.
    """

    module: nn.Module
    attention: nn.Module
    projections: dict[str, nn.Parameter]
    call: Call

    def run(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What attention puts out, and what leaves the block; both as `hidden`, `[1, T, D]`."""
        outputs: list[Tensor] = []
        with _hook(self.attention, lambda module, args, output: outputs.append(_first(output))):
            out = self._forward(hidden)
        return outputs[0], out

    def attend(self, hidden: Tensor) -> Tensor:
        """What attention puts out; the rest of the block is not run."""
        outputs: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(_first(output))
            raise _Stopped

        with _hook(self.attention, stop), suppress(_Stopped):
            self._forward(hidden)
        return outputs[0]

    def adds_attention(self, hidden: Tensor) -> bool:
        """Whether the block adds the attention's output to the stream as it is, and goes on from the sum.

        Not so where the output is normalised first, or where attention and MLP run side by side. The sum is looked
        for among the inputs of the modules in the block.
        """
        inputs: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.extend(arg for arg in args[:1] if isinstance(arg, Tensor))

        handles = [child.register_forward_pre_hook(look) for child in self.module.children()]
        try:
            added, _ = self.run(hidden)
        finally:
            for handle in handles:
                handle.remove()
        if added.shape != hidden.shape:
            return False
        stream = hidden + added
        alike = (each.reshape(stream.shape) for each in inputs if each.numel() == stream.numel())
        return any(torch.allclose(each, stream, rtol=1e-4) for each in alike)

    def _forward(self, hidden: Tensor) -> Tensor:
        args, kwargs = self.call
        return _first(self.module(hidden, *args, **kwargs))


class Blocks:
    """The blocks of a checkpoint, in float32. Memory is one block, or the embeddings while `entering` runs.

    Args:
        checkpoint: of a language model, stock or grouped.
        spec: of the source; its module paths hold for what was made of it too.
        device: "cpu" or "cuda".
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, device: str) -> None:
        self._checkpoint, self._spec, self._device = checkpoint, spec, device
        self._model = _without_weights(checkpoint, device)
        self._calls: list[Call] = []
        self._tuples = False

    def entering(self, windows: Tensor) -> Iterator[Tensor]:
        """What enters the first block, `[1, T, D]` for each window. Only after this `block` can be used."""
        base = self._model.base_model
        blocks = [self._spec.block(self._model, layer) for layer in range(self._spec.num_layers)]
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        outside = [name for name, parameter in base.named_parameters() if id(parameter) not in inside]
        entries: list[tuple[Tensor, Call]] = []  # of each block

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            entries.append((hidden, (args[1:], kwargs)))
            if len(entries) == len(blocks):
                raise _Stopped
            return (hidden,) if self._tuples else hidden

        with self._weights(outside), _replaced_forward(blocks, pass_on):
            for window in windows:
                for self._tuples in (False, True):  # some families' blocks return the one, some the other
                    entries.clear()
                    with suppress(_Stopped):
                        base(input_ids=window[None].to(self._device), use_cache=False)
                    if all(hidden.ndim == 3 for hidden, _ in entries):
                        break
                self._calls = [call for _, call in entries]
                yield entries[0][0]

    @contextmanager
    def block(self, layer: int) -> Iterator[Block]:
        """One block; its weights go when the context ends."""
        module = self._spec.block(self._model, layer)
        modules = self._model.base_model.named_modules()
        prefix = next(name for name, found in modules if found is module)
        with self._weights([f"{prefix}.{name}" for name, _ in module.named_parameters()]):
            attention = self._spec.attention_module(self._model, layer)
            yield Block(module, attention, self._projections(layer), self._calls[layer])

    def _projections(self, layer: int) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for role in ROLES:
            module = self._spec.projection(self._model, layer, role)
            for kind, parameter in module.named_parameters(recurse=False):
                found[self._spec.tensor(layer, role, kind)] = parameter
        return found

    @contextmanager
    def _weights(self, names: list[str]) -> Iterator[None]:
        """The model with some parameters of its base model filled, frozen."""
        base = self._model.base_model
        kept = {name: base.get_parameter(name) for name in names}
        try:
            for name in names:
                tensor = self._checkpoint.load(f"{self._spec.prefix}{name}")
                filled = nn.Parameter(tensor.to(self._device, torch.float32), requires_grad=False)
                _set(base, name, filled)
            yield
        finally:
            for name, parameter in kept.items():
                _set(base, name, parameter)


class _Stopped(Exception):  # noqa: N818  # control flow, never seen outside
    """Ends a forward pass once what was asked for is known."""


def _without_weights(checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    """The model with every parameter on the meta device and every buffer (rotary frequencies) real.

    This is accelerate's `init_empty_weights`, which a repair should not need installed; torch's meta device alone would
    lose the buffers.
    """
    register(str(checkpoint.config.get("model_type")))
    config = AutoConfig.from_pretrained(str(checkpoint.path), local_files_only=True)
    own = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        own(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        model = class_of(checkpoint.config)._from_config(config, dtype=torch.float32)
    finally:
        nn.Module.register_parameter = own
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model.eval()


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._parameters[leaf] = parameter


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
    own: Mapping[nn.Module, Any] = {module: module.__dict__.get("forward") for module in modules}
    try:
        for module in modules:
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            del module.forward
            if before is not None:
                module.forward = before
