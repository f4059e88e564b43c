"""The forward pass that fills the calibration statistics: hooks on projections, and a look at every attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from gqakit.calibration.second_moment import SecondMoment
from gqakit.core.statistics import LayerStatistics
from gqakit.data.samples import Batch, as_batches, positions_of
from gqakit.errors import DataError, FamilyError
from gqakit.models.attention_hook import Attending, Look, watched_attention
from gqakit.models.outputs import keeps_logits
from gqakit.models.processes import ALONE, Processes
from gqakit.models.remote_code.adapters import HEADS_FIRST, by_head
from gqakit.models.remote_code.attention import softmax
from gqakit.models.spec import ModelSpec

LEAST_SAMPLED = 32
CAUSAL_PARTS = 4
"""The number of parts in which samples of causal attention are followed, each with the keys up to its last position."""


def collect_statistics(
    model: PreTrainedModel,
    spec: ModelSpec,
    batches: Tensor | Iterable[Batch],
    progress: Callable[[int], None] = lambda n: None,
    processes: Processes = ALONE,
) -> dict[int, LayerStatistics]:
    """Moments of every attention layer over some input, from one forward pass a batch.

    Input moments take every position. What attention does is sampled; see `sampled_positions`.

    Args:
        model: a loaded model, in eval mode; its attention modules ask transformers' attention interface.
        spec: its description.
        batches: what to call it with, or token ids `[windows, window]`; without padding, as every position counts.
        progress: called with the positions just seen.
        processes: that share the input; each gets the sums over all of it.

    Raises:
        DataError: when an activation is not finite; names the layer.
        FamilyError: when a layer's attention was not observed; names the layer.
    """
    device = next(model.parameters()).device
    layers = {layer: LayerSums(spec, layer) for layer in range(spec.num_layers)}
    with watched(model, spec, layers), torch.inference_mode():
        for batch in as_batches(batches):
            keep = keeps_logits(model, 1) if spec.family.task == "text" else {}
            model(**{name: _on(value, device) for name, value in batch.items()}, **keep)
            progress(positions_of(batch))
    return {
        index: layer.moments(frequencies(model, spec, index), processes) for index, layer in layers.items()
    }


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def sampled_positions(heads: int, length: int, width: int) -> Tensor:
    """Where each query head is followed, `[heads, positions]`: in all at half of the input's positions.

    Heads take turns and are distributed evenly over the input. Every position looks at all before it, so of a long input at
    most half of the model's width are taken: then following them costs a like share of the forward pass at any length.
    A short input is cheap and says little, so at least `LEAST_SAMPLED` are taken where there are that many.
    """
    wanted = max(LEAST_SAMPLED, min(length, width) // 2)
    each = min(length, max(1, wanted // heads))
    turn = torch.arange(each)[None] * heads + torch.arange(heads)[:, None]
    return turn * length // (each * heads)


@dataclass(frozen=True)
class _Part:
    """Some of the sampled positions, with what follows from them alone; the same for all layers and windows alike.

    Attributes:
        places: `[H, n]`. seen: number of keys that are looked at.
        later: keys after each position, `[H, n, seen]`; None where those have weight too.
        bins: the distance of each key, `[H * n * seen]`, counted on by KV heads.
    """

    places: Tensor
    seen: int
    later: Tensor | None
    bins: Tensor


@lru_cache(maxsize=4)
def _sample(
    heads: int, kv_heads: int, length: int, keys: int, width: int, causal: bool, device: torch.device
) -> tuple[_Part, ...]:
    """The parts in which queries `[heads, length]` are followed to their keys."""
    parts: list[_Part] = []
    reader = torch.arange(heads) * kv_heads // heads
    for places in sampled_positions(heads, length, width).chunk(CAUSAL_PARTS if causal else 1, dim=1):
        seen = int(places.max()) + 1 if causal else keys  # what comes later has no weight
        back = places.int()[..., None] - torch.arange(seen, dtype=torch.int32)
        later = (back < 0).to(device) if causal else None
        bins = back.clamp_min(0) + (seen * reader.int())[:, None, None]
        parts.append(_Part(places.to(device), seen, later, bins.flatten().to(device)))
    return tuple(parts)


class LayerSums:
    """The running sums of one layer."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        self.name = spec.name(layer)
        self.num_kv_heads = spec.key_heads[layer]
        width = spec.widths[layer]
        self.input, self.value = SecondMoment(width), SecondMoment(width)
        self.query = SecondMoment(width) if spec.sites[layer].stack.cross else None
        self.head_dim = spec.head_dim
        self.heads_first = spec.family.model_type in HEADS_FIRST
        self.key: SecondMoment | None = None  # behind a normalisation
        self.query_heads = torch.zeros(self.num_kv_heads, spec.head_dim, spec.head_dim, dtype=torch.float64)
        if spec.behind_norm is not None:
            self.key = SecondMoment(self.num_kv_heads * spec.head_dim)
        cross = self.query is not None  # where nothing turns, so that every distance is as none
        self.rotates = bool(spec.turning.first) and not cross
        self.distances = torch.ones(self.num_kv_heads, int(cross), dtype=torch.float64)
        self.rows: Tensor | None = None  # the layer's present input, between its two hooks
        self.own_frequencies: Tensor | None = None
        self.turns = True

    def take_positions(self, attention: nn.Module) -> None:
        """What a layer says of its positions: that it has none (SmolLM3, cross-attention), or a table of angles (GPT-J)."""
        table = getattr(attention, "embed_positions", None)
        if isinstance(
            table, Tensor
        ):  # [positions, 2 · pairs]: sines, then cosines; at position 1 of the rates
            sines, cosines = table[1].detach().double().cpu().chunk(2)
            self.own_frequencies = torch.atan2(sines, cosines)
        self.turns = self.query is None and bool(getattr(attention, "use_rope", True))

    def see_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The input of the key projection is the layer's, `[B, S, D]`."""
        self.rows = args[0].detach().float()
        self.input.add(self.rows)

    def see_query(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The input of the query projection, where that is another."""
        assert self.query is not None
        self.query.add(args[0].detach())

    def see_normalised_keys(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Keys as they leave their normalisation, before they rotate."""
        assert self.key is not None
        self.key.add(by_head(output.detach(), self.head_dim, self.heads_first).flatten(2))

    def see_normalised_queries(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Queries likewise, added up over those of each KV head."""
        heads = by_head(output.detach().float(), self.head_dim, self.heads_first)
        of_head = heads.flatten(0, 1).unflatten(1, (self.num_kv_heads, -1))  # [B · T, KV heads, queries, d]
        rows = of_head.transpose(0, 1).flatten(1, 2)  # [KV heads, B · T · queries, d]
        self.query_heads += (rows.mT @ rows).cpu()

    def look(self, call: Attending) -> tuple[Tensor, Tensor]:
        """See a call of the attention function, and leave it as it is."""
        self.see_attention(call)
        return call.key, call.value

    def see_attention(self, call: Attending) -> None:
        """Queries `[B, H, T, d]` and keys `[B, heads, S, d]`, as they meet after normalisation and rotation."""
        assert self.rows is not None
        query, key = call.query, call.key
        heads, length, keys = *query.shape[1:3], key.shape[2]
        if self.rotates and keys > self.distances.shape[1]:
            self.distances = pad(self.distances, (0, keys - self.distances.shape[1]))
        key = key.float()  # some families give keys already repeated
        width = self.rows.shape[-1]
        for part in _sample(heads, self.num_kv_heads, length, keys, width, call.causal, query.device):
            self._see_part(call, key[:, :, : part.seen], part)
        self.rows = None

    def _see_part(self, call: Attending, key: Tensor, part: _Part) -> None:
        """`see_attention` at some of the sampled positions, with the keys that are seen from there."""
        assert self.rows is not None
        places, query, mask, cap = part.places, call.query, call.mask, call.softcap
        head = torch.arange(query.shape[1], device=query.device)[:, None]
        asking = (
            (query[:, head, places].float() * call.scaling).unflatten(1, (key.shape[1], -1)).flatten(2, 3)
        )
        scores = (asking @ key.mT).flatten(1, 2).unflatten(1, places.shape)  # [B, H, n, S]
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        if mask is not None:
            of_head = head if mask.shape[1] > 1 else torch.zeros_like(head)
            added = mask[:, of_head, places if mask.shape[2] > 1 else 0][..., : key.shape[2]]
            scores = scores.masked_fill_(~added, -torch.inf) if added.dtype == torch.bool else scores + added
        elif part.later is not None:
            scores = scores.masked_fill_(part.later, -torch.inf)
        weights = softmax(scores, call.sinks)
        self.value.add(weights.flatten(1, 2) @ self.rows[:, : part.seen])
        if self.rotates:
            found = weights.new_zeros(self.num_kv_heads, part.seen)
            found.view(-1).index_add_(0, part.bins, weights.sum(0).flatten())
            self.distances[:, : part.seen] += found.cpu()

    def moments(self, frequencies: Tensor | None, processes: Processes = ALONE) -> LayerStatistics:
        """The averages, over what all processes have seen."""
        self._add_up(processes)
        frequencies = self.own_frequencies if frequencies is None else frequencies
        if frequencies is not None and not self.turns:  # no distance changes anything
            frequencies = torch.zeros_like(frequencies)
        if not self.value.count or (self.rotates and not self.distances.sum()):
            raise FamilyError(
                f"layer {self.name}: the model ran, but its attention was not observed, so nothing is known of what "
                "its values deliver; this version of transformers computes it in another way than gqakit expects"
            )
        inputs = self.input.mean()
        value = self.value.mean()
        query = None if self.query is None else self.query.mean()
        key = query_heads = None
        if self.key is not None:
            key = self.key.mean()[:-1, :-1]
            query_heads = self.query_heads / max(self.key.count, 1)
        for moment in (inputs, value, query, key, query_heads):
            if moment is not None and not bool(torch.isfinite(moment.sum())):
                raise DataError(
                    f"layer {self.name}: activations of its attention are not finite on this input; is the model sound?"
                )
        if frequencies is None or not self.distances.shape[1]:
            return LayerStatistics(inputs, value, None, None, query, key, query_heads)
        distances = self.distances / self.distances.sum(1, keepdim=True)
        return LayerStatistics(inputs, value, distances, frequencies, query, key, query_heads)

    def _add_up(self, processes: Processes) -> None:
        """Make each process's sums those over all."""
        if processes.count == 1:
            return
        for moment in (self.input, self.value, self.query, self.key):
            if moment is not None:
                moment.add_up(processes)
        longest = processes.largest(self.distances.shape[1])
        self.distances = pad(self.distances, (0, longest - self.distances.shape[1]))
        processes.add_up(self.distances, self.query_heads)


@contextmanager
def watched(model: PreTrainedModel, spec: ModelSpec, layers: Mapping[int, LayerSums]) -> Iterator[None]:
    """The model with attention layers reporting to their sums; without any it computes attention as it will then."""
    handles: list[Any] = []
    looks: dict[nn.Module, Look] = {}
    try:
        for index, sums in layers.items():
            looks[spec.attention_module(model, index)] = sums.look
            sums.take_positions(spec.attention_module(model, index))
            projection = spec.projection(model, index, "key")
            handles.append(projection.register_forward_pre_hook(sums.see_input))
            if sums.query is not None:
                projection = spec.projection(model, index, "query")
                handles.append(projection.register_forward_pre_hook(sums.see_query))
            if sums.key is not None:
                query_norm, key_norm = (spec.norm(model, index, name) for name in spec.norms)
                handles.append(query_norm.register_forward_hook(sums.see_normalised_queries))
                handles.append(key_norm.register_forward_hook(sums.see_normalised_keys))
        with watched_attention(model, looks):
            yield
    finally:
        for handle in handles:
            handle.remove()
        _sample.cache_clear()  # long windows' are large


def frequencies(model: PreTrainedModel, spec: ModelSpec, layer: int) -> Tensor | None:
    """Radians per position of each rotary pair of a layer, as the model's own rotary module has them.

    A model whose layers differ keeps them by the layer's type: `sliding_attention_inv_freq`.
    """
    pairs = len(spec.turning.first)
    if not pairs:
        return None
    fitting = {
        name.rpartition(".")[2]: buffer
        for name, buffer in spec.body(model).named_buffers()
        if name.endswith("inv_freq") and buffer.numel() == pairs
    }
    kinds = getattr(model.config, "layer_types", None)
    found = fitting.get(f"{kinds[spec.sites[layer].index] if kinds else None}_inv_freq")
    found = next(iter(fitting.values()), None) if found is None else found
    return None if found is None else found.detach().double().cpu()
