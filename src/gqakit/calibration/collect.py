"""The streaming pass that fills Moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gqakit.core.moments import LayerMoments
from gqakit.errors import DataError
from gqakit.families import ModelSpec


def collect_moments(
    model: nn.Module, spec: ModelSpec, windows: Tensor, progress: Callable[[int], None] = lambda n: None
) -> dict[int, LayerMoments]:
    """Second moments of every attention layer's input over some text.

    One forward pass a window; products in float32, sums in float64.

    Args:
        model: a loaded language model, in eval mode.
        spec: its description.
        windows: token ids, `[windows, window]`.
        progress: called with the tokens just seen.

    Raises:
        DataError: when an activation is not finite; names the layer.
    """
    sums = [_Sum(spec.hidden_size) for _ in range(spec.num_layers)]
    with _watch(model, spec, sums), torch.inference_mode():
        for window in windows:
            model(input_ids=window[None].to(next(model.parameters()).device), use_cache=False, logits_to_keep=1)
            progress(window.numel())
    moments: dict[int, LayerMoments] = {}
    for layer, total in enumerate(sums):
        mean = total.mean()
        if not bool(torch.isfinite(mean).all()):
            raise DataError(f"layer {layer}: the input of its attention is not finite on this text; is the model sound?")
        moments[layer] = LayerMoments(mean)
    return moments


class _Sum:
    """`Σ x̃ x̃ᵀ` over all rows seen."""

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Add rows `[..., width]`."""
        x = rows.detach().flatten(0, -2).float()
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        self.total += (x.T @ x).cpu()
        self.count += len(x)

    def mean(self) -> Tensor:
        """`E[x̃ x̃ᵀ]`."""
        return self.total / max(self.count, 1)


@contextmanager
def _watch(model: nn.Module, spec: ModelSpec, sums: list[_Sum]) -> Iterator[None]:
    """Hooks on the key projections, whose input is the layer's."""
    handles: list[Any] = []
    try:
        for layer, total in enumerate(sums):
            module = model.get_submodule(f"{spec.family.attention.format(layer=layer)}.{spec.family.key}")
            handles.append(module.register_forward_pre_hook(partial(_record, total)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(total: _Sum, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    total.add(args[0])
