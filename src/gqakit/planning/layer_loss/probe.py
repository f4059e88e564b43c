"""What converting one layer alone does to a model's output, without running the layers before it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gqakit.data.samples import Batch, as_batches
from gqakit.models.layers import parameters_of_layer
from gqakit.models.outputs import Output, keeps_logits
from gqakit.models.remote_code.adapters import HEADS_FIRST, map_heads
from gqakit.models.remote_code.packing import DeviceIndex
from gqakit.models.spec import ModelSpec

POSITIONS = 512


class LayerProbe:
    """A model on some input, stopped before one of its layers.

    Layers are best visited in ascending order. What enters the present block is kept, so trying another set of weights there
    costs the blocks from it on; blocks before it are replaced by nothing, and everything else (embedding, masks,
    positions, final norm, head) stays the model's own. An encoder that feeds a decoder runs once for all of its layers.

    Args:
        model: loaded, in eval mode. Its weights are changed only inside `divergence`.
        spec: its description.
        batches: keyword arguments of forward passes, or token ids `[windows, window]`.
    """

    def __init__(self, model: PreTrainedModel, spec: ModelSpec, batches: Tensor | Sequence[Batch]) -> None:
        self._model = model
        self._spec = spec
        device = next(model.parameters()).device
        self._batches = [
            {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            for batch in as_batches(batches)
        ]
        self._blocks = [spec.block(model, layer) for layer in range(spec.num_layers)]
        self._keep = self._positions()
        self._encoded: list[Any] | None = None
        self._rest: list[dict[nn.Module, tuple[Any, ...]]] = [{} for _ in self._batches]
        self._layer = 0
        self._hidden: list[Tensor] | None = None
        with torch.inference_mode():
            self._source = self._first_run()

    def divergence(self, layer: int, weights: Mapping[str, Tensor], merged_keys: Sequence[int] = ()) -> float:
        """How far the output moves when one layer's tensors are replaced.

        Mean `KL(source ‖ model)` in nats at evenly spaced positions for a model that gives logits; else the squared error
        of what it puts out relative to its energy.

        Args:
            layer: whose tensors these are.
            weights: by name of the checkpoint's tensors, of the same shapes; and maps behind normalisations.
            merged_keys: where such maps merge keys, the merged head of each.
        """
        self._advance(layer)
        parameters = parameters_of_layer(self._spec, self._model, layer)
        own = {name: tensor for name, tensor in weights.items() if name in parameters}
        maps = _mapped(self._spec, self._model, layer, weights, merged_keys)
        with torch.inference_mode(), _replaced(parameters, own), maps:
            losses = [
                source.divergence(Output.of(self._run(index))) for index, source in enumerate(self._source)
            ]
        return sum(losses) / len(losses)

    def _positions(self) -> dict[str, Any]:
        if self._spec.family.task != "text":
            return {}
        ids = self._batches[0]["input_ids"]
        step = max(1, -(-sum(batch["input_ids"].numel() for batch in self._batches) // POSITIONS))
        kept = torch.arange(ids.shape[1] - 1, -1, -step, device=ids.device).flip(0)
        return keeps_logits(self._model, kept)

    def _first_run(self) -> list[Output]:
        """The source's output; notes what its blocks give besides hidden states, and what an encoder gives."""
        outputs: list[Output] = []
        encoder = None
        if any(stack.cross for stack in self._spec.family.stacks):
            encoder = self._model.get_encoder()  # pyright: ignore[reportCallIssue]
        encoded: list[Any] = []
        for index in range(len(self._batches)):
            handles = [
                block.register_forward_hook(self._note_rest(index)) for block in dict.fromkeys(self._blocks)
            ]
            if encoder is not None:
                handles.append(encoder.register_forward_hook(lambda m, a, output: encoded.append(output)))
            try:
                outputs.append(Output.of(self._run(index)))
            finally:
                for handle in handles:
                    handle.remove()
        self._encoded = encoded or None
        return outputs

    def _note_rest(self, index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, tuple):
                self._rest[index][module] = output[1:]

        return hook

    def _advance(self, layer: int) -> None:
        if layer < self._layer:  # from the beginning again
            self._layer, self._hidden = 0, None
        if self._hidden is None or self._blocks[layer] is not self._blocks[self._layer]:
            with torch.inference_mode():
                self._hidden = [self._entering(index, layer) for index in range(len(self._batches))]
        self._layer = layer

    def _entering(self, index: int, layer: int) -> Tensor:
        """What the source puts into a layer's block."""
        seen: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _Stopped

        handle = self._blocks[layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._run(index, layer)
        except _Stopped:
            pass
        finally:
            handle.remove()
        return seen[0]

    def _run(self, index: int, layer: int | None = None) -> Any:
        batch = self._batches[index]
        decoding = self._spec.sites[self._layer if layer is None else layer].stack.name != "encoder"
        if self._encoded is not None and decoding:
            batch = {**batch, "encoder_outputs": self._encoded[index]}
        hidden = None if self._hidden is None else self._hidden[index]
        same_side = self._spec.sites[self._layer].stack.block
        if layer is not None and self._spec.sites[layer].stack.block != same_side:
            hidden = None  # the decoder begins with its own embedding
        with _resumed(self._before(), self._blocks[self._layer], hidden, self._rest[index]):
            return self._model(**batch, **self._keep)

    def _before(self) -> list[nn.Module]:
        """The blocks that the present one's input makes needless."""
        present, side = self._blocks[self._layer], self._spec.sites[self._layer].stack.block
        sites = self._spec.sites[: self._layer]
        blocks = [b for b, site in zip(self._blocks, sites, strict=False) if site.stack.block == side]
        return [block for block in dict.fromkeys(blocks) if block is not present]


class _Stopped(Exception):  # noqa: N818  # control flow, never seen outside
    """Ends a forward pass once it has come to the layer that was asked for."""


@contextmanager
def _resumed(
    before: Sequence[nn.Module],
    block: nn.Module,
    hidden: Tensor | None,
    rest: Mapping[nn.Module, tuple[Any, ...]],
) -> Iterator[None]:
    """The model with the blocks `before` passing their input on, and `hidden` entering `block`."""
    if hidden is None:
        yield
        return

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    own = [earlier.forward for earlier in before]
    handle = block.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for earlier in before:
            earlier.forward = _passing_on(rest.get(earlier))
        yield
    finally:
        handle.remove()
        for earlier, forward in zip(before, own, strict=True):
            earlier.forward = forward


def _passing_on(rest: tuple[Any, ...] | None) -> Any:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if rest is None else (hidden_states, *rest)

    return forward


@contextmanager
def _replaced(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with some parameters overwritten."""
    kept = {name: parameters[name].detach().clone() for name in weights}
    try:
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
        yield
    finally:
        for name, tensor in kept.items():
            parameters[name].copy_(tensor)


@contextmanager
def _mapped(
    spec: ModelSpec,
    model: PreTrainedModel,
    layer: int,
    weights: Mapping[str, Tensor],
    merged_keys: Sequence[int],
) -> Iterator[None]:
    """The model with maps behind the normalisations of a layer, if there are any.

    A merged key is repeated for each that it was made of.
    """
    norms = [name for name in spec.norms if name and spec.maps(layer, name) in weights]
    handles: list[Any] = []
    try:
        for name in norms:
            norm: Any = spec.norm(model, layer, name)
            norm.maps = weights[spec.maps(layer, name)].to(model.device, model.dtype)
            alike = [[int(one == other) for other in merged_keys] for one in merged_keys]
            into = DeviceIndex(alike) if name == spec.norms[1] else None
            first = spec.family.model_type in HEADS_FIRST
            handles.append(norm.register_forward_hook(partial(map_heads, first, into)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in norms:
            del spec.norm(model, layer, name).maps
