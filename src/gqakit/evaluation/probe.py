"""What converting one layer alone does to a model's predictions, without running the layers before it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gqakit.families import ModelSpec

POSITIONS = 512


class LayerProbe:
    """A language model on some windows, stopped before one of its layers.

    Layers are visited in ascending order. What enters the present layer is kept, so trying another set of weights there
    costs the layers from it on; layers before it are replaced by nothing, and everything else (embedding, masks,
    positions, final norm, head) stays the model's own.

    Args:
        model: loaded, in eval mode. Its weights are changed only inside `divergence`.
        spec: its description.
        windows: token ids, `[windows, window]`, run as one batch.
    """

    def __init__(self, model: PreTrainedModel, spec: ModelSpec, windows: Tensor) -> None:
        self._model = model
        self._windows = windows.to(next(model.parameters()).device)
        self._blocks = [_block(model, spec, layer) for layer in range(spec.num_layers)]
        length = windows.shape[1]
        step = max(1, -(-windows.numel() // POSITIONS))
        self._positions = torch.arange(length - 1, -1, -step, device=self._windows.device).flip(0)
        self._layer = 0
        self._hidden: Tensor | None = None
        with torch.inference_mode():
            self._source = self._log_probabilities()

    def divergence(self, layer: int, weights: Mapping[str, Tensor]) -> float:
        """Mean `KL(source ‖ model)` in nats, at evenly spaced positions, when one layer's tensors are replaced.

        Args:
            layer: not below that of an earlier call.
            weights: by name of the model's parameters, of the same shapes.
        """
        self._advance(layer)
        with torch.inference_mode(), _replaced(self._model, weights):
            changed = self._log_probabilities()
            per_token = (self._source.exp() * (self._source - changed)).sum(-1)
        return float(per_token.double().mean())

    def _advance(self, layer: int) -> None:
        if layer < self._layer:
            raise ValueError(
                f"layer {layer} comes after layer {self._layer}: probe layers in ascending order"
            )
        if layer > self._layer or self._hidden is None:
            with torch.inference_mode():
                self._hidden = self._entering(layer)
            self._layer = layer

    def _entering(self, layer: int) -> Tensor:
        """What the source puts into a layer."""
        seen: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _Stopped

        handle = self._blocks[layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._run()
        except _Stopped:
            pass
        finally:
            handle.remove()
        return seen[0]

    def _log_probabilities(self) -> Tensor:
        logits: Tensor = self._run().logits
        return logits.float().log_softmax(-1)

    def _run(self) -> Any:
        with _resumed(self._blocks, self._layer, self._hidden):
            return self._model(input_ids=self._windows, use_cache=False, logits_to_keep=self._positions)


class _Stopped(Exception):  # noqa: N818  # control flow, never seen outside
    """Ends a forward pass once it has come to the layer that was asked for."""


def _block(model: nn.Module, spec: ModelSpec, layer: int) -> nn.Module:
    """The transformer block that holds a layer's attention."""
    path, _, _ = spec.family.attention.format(layer=layer).rpartition(".")
    return model.get_submodule(path)


@contextmanager
def _resumed(blocks: list[nn.Module], layer: int, hidden: Tensor | None) -> Iterator[None]:
    """The model with the blocks before `layer` passing their input on, and `hidden` entering that one."""
    if hidden is None:
        yield
        return

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    own = [block.forward for block in blocks[:layer]]
    handle = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for block in blocks[:layer]:
            block.forward = _pass_on
        yield
    finally:
        handle.remove()
        for block, forward in zip(blocks[:layer], own, strict=True):
            block.forward = forward


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def _replaced(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with some parameters overwritten."""
    kept = {name: model.get_parameter(name).detach().clone() for name in weights}
    try:
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
        yield
    finally:
        for name, tensor in kept.items():
            model.get_parameter(name).copy_(tensor)
