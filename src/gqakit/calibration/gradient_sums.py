"""The running sums of one layer over a backward pass: second moments of gradients, and what they weigh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gqakit.calibration.second_moment import SecondMoment
from gqakit.core.gradients import LayerGradients
from gqakit.errors import DataError
from gqakit.models.attention_hook import Attending
from gqakit.models.families.base import Role
from gqakit.models.layers import heads_of_output
from gqakit.models.processes import ALONE, Processes
from gqakit.models.remote_code.adapters import HEADS_FIRST, by_head
from gqakit.models.remote_code.attention import softmax
from gqakit.models.spec import ModelSpec

NUMBERS = 1 << 22
"""The most logits that are worked on at once: attention is made again for some of the queries at a time."""


class GradientSums:
    """What a layer's attention is given and gives while the model runs, and what its gradient says on the way back.

    Batch B, query heads H, queries T, keys S, width of a head d.
    """

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        self.name = spec.name(layer)
        self.batches = 0
        self._spec, self._layer = spec, layer
        self._heads = heads = spec.key_heads[layer]
        width = spec.head_dim
        self._value = torch.zeros(heads, width, width, dtype=torch.float64)
        self._query = torch.zeros(heads, width, width, dtype=torch.float64)
        self._key = SecondMoment(heads * width)
        self._weight = 0.0
        self._rotates = bool(spec.turning.first)
        self._distances = torch.zeros(heads, 0, dtype=torch.float64)
        self._queries: Tensor | None = None  # [B, T, H, d], as they enter RoPE
        self._keys: Tensor | None = None  # [B, S, heads, d], likewise
        self._call: Attending | None = None

    def see_queries(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """What the query projection, or the normalisation behind it, puts out."""
        self._queries = self._by_head(output, "query")

    def see_keys(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """What the key projection, or the normalisation behind it, puts out."""
        self._keys = self._by_head(output, "key")

    def look(self, call: Attending) -> tuple[Tensor, Tensor]:
        """See a call of the attention function, and leave it as it is."""
        query, key, value = call.query.detach(), call.key.detach(), call.value.detach()
        self._call = call._replace(query=query, key=key, value=value)
        return call.key, call.value

    def see_delivered(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """What attention delivers to the output projection, `[B, T, H · d]`, whose gradient is to come."""
        if args[0].requires_grad:
            args[0].register_hook(lambda gradient: self._see_gradient(gradient.detach()))

    def _by_head(self, output: Tensor, role: Role) -> Tensor:
        spec, output = self._spec, output.detach().float()
        if spec.behind_norm is not None:
            return by_head(output, spec.head_dim, spec.family.model_type in HEADS_FIRST)
        return heads_of_output(spec, self._layer, output, role)

    @torch.no_grad()
    def _see_gradient(self, gradient: Tensor) -> None:
        """The gradient `u`, `[B, T, H · d]`, at what attention delivers."""
        assert self._call is not None
        assert self._queries is not None
        assert self._keys is not None
        query, key = self._call.query, self._call.key
        gradient = gradient.float().unflatten(-1, (query.shape[1], -1))  # [B, T, H, d]
        length, keys = query.shape[2], key.shape[2]
        if self._rotates and keys > self._distances.shape[1]:
            self._distances = pad(self._distances, (0, keys - self._distances.shape[1]))
        of_key = torch.zeros(len(query), self._heads, keys, device=query.device)
        of_query = torch.zeros(*query.shape[:3], device=query.device)
        step = max(1, NUMBERS // (len(query) * query.shape[1] * keys))
        for start in range(0, length, step):
            part = slice(start, min(start + step, length))
            self._see_part(self._call, part, gradient, of_key, of_query)
        rows = _of_kv_head(gradient, self._heads)
        self._value += (rows.mT @ rows).cpu()
        # What enters RoPE, on the scale at which queries and keys meet: some families scale queries before, or angles.
        scale = (
            self._call.scaling
            * _length(query)
            * _length(key)
            / (_length(self._queries) * _length(self._keys))
        )
        weighed = self._queries * (scale * of_query.sqrt()).transpose(1, 2)[..., None]
        rows = _of_kv_head(weighed, self._heads)
        self._query += (rows.mT @ rows).cpu()
        # Products between heads need one weight for all of them: the sum of theirs.
        weight = of_key.sum(1)
        self._key.add(self._keys.flatten(2) * weight.sqrt()[..., None])
        self._weight += float(weight.double().sum())
        self.batches += 1
        self._call = self._queries = self._keys = None

    def _see_part(
        self, call: Attending, part: slice, gradient: Tensor, of_key: Tensor, of_query: Tensor
    ) -> None:
        """Squared gradients of the logits of some queries, added up over queries, over keys and by distance."""
        query, key, cap = call.query, call.key, call.softcap
        seen = part.stop if call.causal else key.shape[2]  # what comes later has no weight
        raw = _products(query[:, :, part] * call.scaling, key[:, :, :seen])  # [B, H, n, seen]
        scores, slope = raw, None
        if cap is not None:
            capped = torch.tanh(raw / cap)
            scores, slope = cap * capped, 1 - capped.square()
        scores = _masked(scores, call.mask, part, call.causal)
        weights = softmax(scores, call.sinks)
        shares = weights * _products(gradient[:, part].transpose(1, 2), call.value[:, :, :seen])
        slopes = shares - weights * shares.sum(-1, keepdim=True)
        if slope is not None:
            slopes = slopes * slope
        squares = slopes.square_()
        of_query[:, :, part] = squares.sum(-1)
        squares = squares.unflatten(1, (self._heads, -1)).sum(2)  # [B, heads, n, seen]
        of_key[:, :, :seen] += squares.sum(2)
        if self._rotates:
            places = torch.arange(part.start, part.stop, device=squares.device)[:, None]
            back = (places - torch.arange(seen, device=squares.device)).clamp_min(0).flatten()
            found = squares.new_zeros(self._heads, seen)
            found.index_add_(1, back, squares.sum(0).flatten(1))
            self._distances[:, :seen] += found.cpu()

    def gradients(self, processes: Processes = ALONE) -> LayerGradients:
        """The averages, over what all processes have seen.

        Raises:
            DataError: a gradient was not finite; names the layer.
        """
        if processes.count > 1:
            self._key.add_up(processes)
            self._distances = pad(
                self._distances, (0, processes.largest(self._distances.shape[1]) - self._distances.shape[1])
            )
            processes.add_up(self._value, self._query, self._distances)
            self.batches, self._weight = processes.total(self.batches), sum(processes.every(self._weight))
        batches, width = max(self.batches, 1), self._heads * self._spec.head_dim
        key = self._key.mean()[:width, :width] * (self._key.count / max(self._weight, 1e-300))
        distances = None
        if self._distances.shape[1]:
            distances = self._distances / self._distances.sum(1, keepdim=True).clamp_min(1e-300)
        found = LayerGradients(self._value / batches, self._query / batches, key, distances)
        for moment in (found.value, found.query, found.key):
            if not bool(torch.isfinite(moment.sum())):
                raise DataError(
                    f"layer {self.name}: gradients of its attention are not finite on this input; is the model sound? "
                    "Or run it with `dtype=float32`"
                )
        return found


def _of_kv_head(states: Tensor, heads: int) -> Tensor:
    """`[B, T, H, d]` as `[heads, B · T · queries of each, d]`."""
    return states.flatten(0, 1).unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)


def _length(states: Tensor) -> float:
    """The root of the mean square, which no rotation changes."""
    return float(states.float().square().mean().sqrt()) or 1e-30


def _products(left: Tensor, right: Tensor) -> Tensor:
    """`[B, H, n, S]`: rows `[B, H, n, d]` of query heads with `[B, K, S, d]` that each H / K of them share."""
    shared = left.float().unflatten(1, (right.shape[1], -1)).flatten(2, 3)  # [B, K, (H / K) · n, d]
    return (shared @ right.float().mT).unflatten(2, (-1, left.shape[2])).flatten(1, 2)


def _masked(scores: Tensor, mask: Tensor | None, part: slice, causal: bool) -> Tensor:
    """Scores `[B, H, n, seen]` with what may not be seen at minus infinity."""
    seen = scores.shape[-1]
    if mask is not None:
        rows = part if mask.shape[2] > 1 else slice(None)
        added = mask[:, :, rows, :seen]
        return scores.masked_fill(~added, -torch.inf) if added.dtype == torch.bool else scores + added
    if not causal:
        return scores
    places = torch.arange(part.start, part.stop, device=scores.device)[:, None]
    return scores.masked_fill(places < torch.arange(seen, device=scores.device), -torch.inf)
