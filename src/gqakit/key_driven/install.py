"""Key-driven attention into a model, and out of it again as an ordinary grouped checkpoint's head maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from gqakit.core.key_allocation import contiguous_map, equal_allocation
from gqakit.errors import UsageError
from gqakit.key_driven.attention import (
    DynamicKeyDistributed,
    KeyDistributed,
    KeyDrivenHeads,
    Perturbed,
    UpdateSchedule,
)
from gqakit.key_driven.published import (
    PublishedDynamic,
    PublishedKeyDistributed,
    PublishedPerturbed,
)
from gqakit.models.remote_code.attention import GroupedHeads
from gqakit.models.remote_code.heads import HeadMaps
from gqakit.models.spec import ModelSpec

Make = Callable[[int, int, int, UpdateSchedule], KeyDrivenHeads]

VARIANTS: dict[str, tuple[Make, Make]] = {
    "kdgqa": (KeyDistributed, PublishedKeyDistributed),
    "dgqa-ema": (partial(DynamicKeyDistributed, by_change=False), partial(PublishedDynamic, by_change=False)),
    "dgqa-diff": (partial(DynamicKeyDistributed, by_change=True), partial(PublishedDynamic, by_change=True)),
    "pgqa": (Perturbed, PublishedPerturbed),
}
"""Each method's attention, ours and as published."""

Allocation = tuple[int, ...]


def install(
    model: Any, spec: ModelSpec, method: str, schedule: UpdateSchedule, *, as_published: bool
) -> None:
    """Give every attention layer of a grouped model the method's attention; methods without one change nothing.

    Raises:
        UsageError: see `check_groups`.
    """
    if method not in VARIANTS:
        return
    make = VARIANTS[method][as_published]
    maps = model.config.layer_heads()
    check_groups(method, maps)
    for layer, heads in enumerate(maps):
        module: Any = spec.attention_module(model, layer)
        device = next(module.parameters()).device
        module.grouped_heads = make(spec.num_heads, heads.num_key_heads, layer, schedule).to(device)


def check_groups(method: str, maps: Sequence[HeadMaps]) -> None:
    """Refuse groups that are not what key-driven methods begin from: consecutive, and as equal as can be.

    Raises:
        UsageError: naming the layer.
    """
    for layer, heads in enumerate(maps):
        labels = heads.key_head_of_query
        equal = contiguous_map(equal_allocation(len(labels), heads.num_key_heads))
        if method in VARIANTS and heads != HeadMaps(equal, equal):
            raise UsageError(
                f"method {method} begins with consecutive equal groups; layer {layer} has others ({list(labels)}). "
                "Give the model as it was before conversion, or `method=gqa`"
            )


def freeze(model: Any, spec: ModelSpec) -> list[Allocation]:
    """Put ordinary grouped attention back, with the allocation that training came to, in modules and config.

    KV heads that no query head reads leave the model, which changes nothing in what it computes.

    Returns:
        Query heads of each KV head, layer by layer, as `allocations` says them.
    """
    entries = model.config.gqakit["layers"]
    for layer in range(spec.num_layers):
        module: Any = spec.attention_module(model, layer)
        dynamic = module.grouped_heads
        if not isinstance(dynamic, KeyDrivenHeads):
            continue
        allocation = dynamic.frozen()
        used = [group for group, count in enumerate(allocation) if count]
        if len(used) < len(allocation):
            for role in ("key", "value"):
                _keep_heads(spec.projection(model, layer, role), used, spec.head_dim)
        labels = contiguous_map([allocation[group] for group in used])
        del module.grouped_heads
        module.grouped_heads = GroupedHeads(HeadMaps(labels, labels))
        entries[layer]["key_head_of_query"] = entries[layer]["value_head_of_query"] = list(labels)
    return allocations(model)


def allocations(model: Any) -> list[Allocation]:
    """How many query heads read each key head, layer by layer."""
    maps = [heads.key_head_of_query for heads in model.config.layer_heads()]
    return [tuple(each.count(head) for head in range(max(each) + 1)) for each in maps]


def _keep_heads(linear: Any, used: list[int], head_dim: int) -> None:
    """Leave only some heads in a projection."""
    rows = torch.cat([torch.arange(head * head_dim, (head + 1) * head_dim) for head in used])
    with torch.no_grad():
        linear.weight = nn.Parameter(linear.weight[rows.to(linear.weight.device)].clone())
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias[rows.to(linear.bias.device)].clone())
    linear.out_features = len(rows)
