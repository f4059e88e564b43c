"""Refitting a converted model's output projections, layer by layer, on text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gqakit.core.refit import OutputMoments, guarded_refit
from gqakit.families import ModelSpec


@dataclass(frozen=True)
class LayerRefit:
    """What came of one layer: the ridge chosen (None: kept as it was) and the held-out error before and after.

    Errors are relative to the energy of the layer's original output.
    """

    ridge: float | None
    error_before: float
    error_after: float


def refit_outputs(
    source: PreTrainedModel,
    converted: PreTrainedModel,
    spec: ModelSpec,
    windows: Tensor,
    held_out: int,
    progress: Callable[[int], None] = lambda n: None,
) -> list[LayerRefit]:
    """Refit `W_O` of every layer of `converted`, in place, each on the stream that the refitted layers before it make.

    The target is what the source's layer puts out on the same input. Needs both models and the hidden states
    of all windows in memory.

    Args:
        source, converted: loaded, in eval mode, in float32, on the same device.
        spec: of the source; its module paths hold for both.
        windows: token ids, `[windows, window]`; the last `held_out` decide and are not fitted on.
        held_out: how many.
        progress: called with 1 for each layer done.
    """
    results: list[LayerRefit] = []
    with torch.inference_mode():
        arguments, hidden = _first_inputs(converted, spec, windows)
        for index in range(spec.num_layers):
            layer = spec.block(converted, index)
            attention, original = (spec.attention_module(model, index) for model in (converted, source))
            projection = spec.projection(converted, index, "output")
            moments = [_moments(layer, attention, original, projection, h, arguments[index]) for h in hidden]
            fit, test = _total(moments[:-held_out]), _total(moments[-held_out:])
            weight = projection.weight
            assert isinstance(weight, Tensor)
            fitted, ridge = guarded_refit(weight.cpu(), fit, test)
            results.append(
                LayerRefit(ridge, test.error(weight.cpu()) / test.target, test.error(fitted) / test.target)
            )
            weight.copy_(fitted)
            hidden = [_run(layer, h, arguments[index]) for h in hidden]
            progress(1)
    return results


def _first_inputs(
    model: PreTrainedModel, spec: ModelSpec, windows: Tensor
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """The keyword arguments that every layer gets, and what enters the first one for each window."""
    arguments: list[dict[str, Any]] = []
    entering: list[Tensor] = []
    device = next(model.parameters()).device

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments.append({key: value for key, value in kwargs.items() if key != "hidden_states"})

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(args[0] if args else kwargs["hidden_states"])
        raise _StopForward

    layers = [spec.block(model, index) for index in range(spec.num_layers)]
    with _hooks([layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in layers]):
        model(input_ids=windows[:1].to(device), use_cache=False, logits_to_keep=1)
    with _hooks([layers[0].register_forward_pre_hook(stop, with_kwargs=True)]):
        for window in windows:
            with suppress(_StopForward):
                model(input_ids=window[None].to(device), use_cache=False)
    return arguments, entering


class _StopForward(Exception):  # noqa: N818  # control flow, never seen outside
    """Ends a forward pass once its first layer's input is known."""


def _moments(
    layer: nn.Module,
    attention: nn.Module,
    original: nn.Module,
    projection: nn.Module,
    hidden: Tensor,
    arguments: dict[str, Any],
) -> OutputMoments:
    """What the converted heads deliver on this input and what the original layer makes of the same."""
    seen: dict[str, Tensor] = {}

    def target(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["target"] = original(*args, **kwargs)[0]

    def heads(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["heads"] = args[0]
        raise _StopForward  # what follows in the layer is not needed yet

    with (
        _hooks(
            [
                attention.register_forward_pre_hook(target, with_kwargs=True),
                projection.register_forward_pre_hook(heads),
            ]
        ),
        suppress(_StopForward),
    ):
        _run(layer, hidden, arguments)
    a, y = (seen[name].flatten(0, -2).float() for name in ("heads", "target"))
    if isinstance(bias := getattr(projection, "bias", None), Tensor):
        y = y - bias
    return OutputMoments((a.T @ a).double().cpu(), (y.T @ a).double().cpu(), float(y.double().square().sum()))


def _run(layer: nn.Module, hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
    out = layer(hidden, **arguments)
    return out[0] if isinstance(out, tuple) else out


def _total(moments: list[OutputMoments]) -> OutputMoments:
    total = moments[0]
    for more in moments[1:]:
        total = total + more
    return total


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
