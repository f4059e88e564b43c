"""The streaming pass that fills Moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from gqakit.calibration.samples import Batch, as_batches, positions_of
from gqakit.core.moments import LayerMoments
from gqakit.errors import DataError
from gqakit.families import ModelSpec
from gqakit.runtime.attention_gqakit import GroupedHeads, mask_with_bias
from gqakit.runtime.heads_gqakit import LayerHeads

_NAME = "gqakit_calibration"


def collect_moments(
    model: PreTrainedModel,
    spec: ModelSpec,
    batches: Tensor | Iterable[Batch],
    progress: Callable[[int], None] = lambda n: None,
) -> dict[int, LayerMoments]:
    """Moments of every attention layer over some input, from one forward pass a batch.

    Input moments take every position. What attention does is sampled: each query head is followed at every
    `num_heads`-th position, another one for each head, so that it costs about as much as the input moments.
    Products in float32, sums in float64.

    Args:
        model: a loaded model, in eval mode; its attention modules ask transformers' attention interface.
        spec: its description.
        batches: what to call it with, or token ids `[windows, window]`; without padding, as every position counts.
        progress: called with the positions just seen.

    Raises:
        DataError: when an activation is not finite; names the layer.
    """
    device = next(model.parameters()).device
    layers = [_LayerSums(spec, layer) for layer in range(spec.num_layers)]
    with _watched(model, spec, layers), torch.inference_mode():
        for batch in as_batches(batches):
            keep = {"logits_to_keep": 1} if spec.family.task == "text" else {}
            model(**{name: _on(value, device) for name, value in batch.items()}, **keep)
            progress(positions_of(batch))
    frequencies = _frequencies(model, spec)
    return {index: layer.moments(frequencies) for index, layer in enumerate(layers)}


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


class _LayerSums:
    """The running sums of one layer."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        self.name = spec.name(layer)
        self.num_kv_heads = spec.key_heads[layer]
        self.input = _Second(spec.hidden_size)
        self.value = _Second(spec.hidden_size)
        self.query = _Second(spec.hidden_size) if spec.sites[layer].stack.cross else None
        self.rotates = bool(spec.channels.first)
        self.distances = torch.zeros(self.num_kv_heads, 0, dtype=torch.float64)
        self.rows: Tensor | None = None  # the layer's present input, between its two hooks

    def see_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The input of the key projection is the layer's, `[B, S, D]`."""
        self.rows = _augmented(args[0])
        self.input.add(self.rows)

    def see_query(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The input of the query projection, where that is another."""
        assert self.query is not None
        self.query.add(_augmented(args[0]))

    def see_attention(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, causal: bool, cap: float | None
    ) -> None:
        """Queries `[B, H, T, d]` and keys `[B, heads, S, d]`, as they meet after normalisation and rotation."""
        assert self.rows is not None
        heads, length, positions = query.shape[1], query.shape[2], key.shape[2]
        per_head = heads // key.shape[1]  # some families give keys already repeated
        position = torch.arange(positions, device=query.device)
        for head in range(heads):
            sampled = torch.arange(head % min(heads, length), length, heads, device=query.device)
            scores = query[:, head, sampled].float() @ key[:, head // per_head].float().mT * scaling
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            if mask is not None:
                rows = mask[:, head if mask.shape[1] > 1 else 0][..., :positions]
                rows = rows[:, sampled] if rows.shape[1] > 1 else rows
                added = rows.dtype != torch.bool
                scores = scores + rows if added else scores.masked_fill(~rows, -torch.inf)
            elif causal:
                scores = scores.masked_fill(position[None] > sampled[:, None], -torch.inf)
            weights = scores.softmax(-1)  # [B, sampled, S]
            self.value.add(weights @ self.rows)
            if self.rotates:
                self._see_distances(head * self.num_kv_heads // heads, sampled, position, weights)

    def _see_distances(self, kv_head: int, sampled: Tensor, position: Tensor, weights: Tensor) -> None:
        if len(position) > self.distances.shape[1]:
            grown = self.distances.new_zeros(self.num_kv_heads, len(position))
            grown[:, : self.distances.shape[1]] = self.distances
            self.distances = grown
        distance = (sampled[:, None] - position[None]).clamp_min(0).flatten().cpu()
        self.distances[kv_head].index_add_(0, distance, weights.sum(0).flatten().double().cpu())

    def moments(self, frequencies: Tensor | None) -> LayerMoments:
        """The averages."""
        inputs = self.input.mean()
        value = self.value.mean() if self.value.count else None
        query = None if self.query is None else self.query.mean()
        for moment in (inputs, value, query):
            if moment is not None and not bool(torch.isfinite(moment).all()):
                raise DataError(
                    f"layer {self.name}: activations of its attention are not finite on this input; is the model sound?"
                )
        if frequencies is None or not self.distances.shape[1]:
            return LayerMoments(inputs, value, query=query)
        distances = self.distances / self.distances.sum(1, keepdim=True)
        return LayerMoments(inputs, value, distances, frequencies, query)


def _augmented(states: Tensor) -> Tensor:
    rows = states.detach().float()
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


class _Second:
    """`Σ x̃ x̃ᵀ` over all rows seen."""

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Add rows `[..., width + 1]`."""
        rows = rows.flatten(0, -2)
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
            watched[spec.attention_module(model, index)] = sums
            projection = spec.projection(model, index, "key")
            handles.append(projection.register_forward_pre_hook(sums.see_input))
            if sums.query is not None:
                projection = spec.projection(model, index, "query")
                handles.append(projection.register_forward_pre_hook(sums.see_query))
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
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention that the model computes, after a look at its queries and keys."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    wants_causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = query.shape[2] > 1 and attention_mask is None and wants_causal
    if position_bias is not None:
        attention_mask, causal = mask_with_bias(attention_mask, position_bias, causal, query, key), False
    if module in watched:
        watched[module].see_attention(query, key, attention_mask, scale, causal, softcap)
    if softcap is not None:  # which no function of transformers' but its eager ones knows
        group = query.shape[1] // key.shape[1]
        reads = tuple(head // group for head in range(query.shape[1]))
        heads = GroupedHeads(LayerHeads(reads, reads))
        out = heads.attend(query, key, value, attention_mask, dropout, scale, causal, softcap)
        return out.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scale, causal, **kwargs)


def _frequencies(model: PreTrainedModel, spec: ModelSpec) -> Tensor | None:
    """Radians per position of each rotary pair, as the model's own rotary module has them."""
    if not spec.channels.first:
        return None
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.numel() == len(spec.channels.first):
            return buffer.detach().double().cpu()
    return None
