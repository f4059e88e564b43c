"""The streaming pass that fills Moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gqakit.core.moments import LayerMoments
from gqakit.errors import DataError
from gqakit.families import ModelSpec

_NAME = "gqakit_calibration"


def collect_moments(
    model: PreTrainedModel, spec: ModelSpec, windows: Tensor, progress: Callable[[int], None] = lambda n: None
) -> dict[int, LayerMoments]:
    """Moments of every attention layer over some text, from one forward pass a window.

    Input moments take every position. What attention does is sampled: each query head is followed at every
    `num_heads`-th position, another one for each head, so that it costs about as much as the input moments.
    Products in float32, sums in float64.

    Args:
        model: a loaded language model, in eval mode.
        spec: its description.
        windows: token ids, `[windows, window]`.
        progress: called with the tokens just seen.

    Raises:
        DataError: when an activation is not finite; names the layer.
    """
    device = next(model.parameters()).device
    layers = [_LayerSums(spec, layer, windows.shape[1]) for layer in range(spec.num_layers)]
    with _watched(model, spec, layers), torch.inference_mode():
        for window in windows:
            model(input_ids=window[None].to(device), use_cache=False, logits_to_keep=1)
            progress(window.numel())
    frequencies = _frequencies(model, spec)
    return {index: layer.moments(frequencies) for index, layer in enumerate(layers)}


class _LayerSums:
    """The running sums of one layer."""

    def __init__(self, spec: ModelSpec, layer: int, window: int) -> None:
        self.layer = layer
        self.num_kv_heads = spec.key_heads[layer]
        self.input = _Second(spec.hidden_size)
        self.value = _Second(spec.hidden_size)
        self.distances = torch.zeros(self.num_kv_heads, window, dtype=torch.float64)
        self.rows: Tensor | None = None  # the layer's present input, between its two hooks

    def see_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The input of the key projection is the layer's."""
        rows = args[0].detach()[0].float()
        self.rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self.input.add(self.rows)

    def see_attention(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Queries `[1, H, T, d]` and keys `[1, kv, T, d]`, as they meet after normalisation and rotation."""
        assert self.rows is not None
        heads, length = query.shape[1], query.shape[2]
        per_head = heads // self.num_kv_heads
        position = torch.arange(length, device=query.device)
        for head in range(heads):
            sampled = position[head % min(heads, length) :: heads]
            scores = query[0, head, sampled].float() @ key[0, head // per_head].float().T * scaling
            if mask is None:
                scores = scores.masked_fill(position[None] > sampled[:, None], -torch.inf)
            elif mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask[0, 0, sampled, :length], -torch.inf)
            else:
                scores = scores + mask[0, 0, sampled, :length]
            weights = scores.softmax(-1)
            self.value.add(weights @ self.rows)
            distance = (sampled[:, None] - position[None]).clamp_min(0)
            self.distances[head // per_head].index_add_(
                0, distance.flatten().cpu(), weights.flatten().double().cpu()
            )

    def moments(self, frequencies: Tensor | None) -> LayerMoments:
        """The averages."""
        value, inputs = self.value.mean(), self.input.mean()
        if not bool(torch.isfinite(inputs).all() and torch.isfinite(value).all()):
            raise DataError(
                f"layer {self.layer}: activations of its attention are not finite on this text; is the model sound?"
            )
        if frequencies is None:
            return LayerMoments(inputs, value)
        distances = self.distances / self.distances.sum(1, keepdim=True)
        return LayerMoments(inputs, value, distances, frequencies)


class _Second:
    """`Σ x̃ x̃ᵀ` over all rows seen."""

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Add rows `[n, width + 1]`."""
        self.total += (rows.T @ rows).cpu()
        self.count += len(rows)

    def mean(self) -> Tensor:
        """`E[x̃ x̃ᵀ]`."""
        return self.total / max(self.count, 1)


@contextmanager
def _watched(model: PreTrainedModel, spec: ModelSpec, layers: list[_LayerSums]) -> Iterator[None]:
    """The model with every attention layer reporting to its sums."""
    handles: list[Any] = []
    watched: dict[nn.Module, _LayerSums] = {}
    attention = model.config._attn_implementation or "sdpa"
    try:
        for index, sums in enumerate(layers):
            module = model.get_submodule(spec.family.attention.format(layer=index))
            watched[module] = sums
            projection = module.get_submodule(spec.family.key)
            handles.append(projection.register_forward_pre_hook(sums.see_input))
        AttentionInterface.register(_NAME, partial(_attention, watched))
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(attention)
        watched.clear()  # the registered function stays behind and must not keep the model alive


def _attention(
    watched: dict[nn.Module, _LayerSums],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' own attention, after a look at its queries and keys."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    watched[module].see_attention(query, key, attention_mask, scale)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _frequencies(model: PreTrainedModel, spec: ModelSpec) -> Tensor | None:
    """Radians per position of each rotary pair, as the model's own rotary module has them."""
    if not spec.channels.first:
        return None
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.numel() == len(spec.channels.first):
            return buffer.detach().double().cpu()
    return None
