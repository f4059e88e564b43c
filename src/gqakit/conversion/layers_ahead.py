"""Converted layers when the writer asks for them, made ahead of it: by a thread, or by several processes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from gqakit.planning.layer_features import LayerReader
from gqakit.planning.plan import Plan
from gqakit.planning.workers import Workers, in_worker, on_layers

Tensors = dict[str, Tensor]
Make = Callable[[LayerReader, Plan, int], Tensors]
KEPT = 2
"""Layers whose tensors are kept: a layer's tensors lie together, but two layers may be interleaved in a shard."""


class LayersAhead:
    """Gives the tensors of a layer; the same ones, however many processes make them.

    Args:
        read: the source's layers. plan: what is carried out.
        make: converts a layer; a function of a module, which a worker process can find.
        order: the layers, as they will be asked for. Workers are at most their number ahead.
        workers: processes. One stands for a thread of this process, which converts a layer while the one before is written.
    """

    def __init__(self, read: LayerReader, plan: Plan, make: Make, order: Sequence[int], workers: int) -> None:
        self._read, self._plan, self._make, self._order = read, plan, make, list(order)
        self._workers = min(workers, len(self._order))
        self._pool: Workers | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: dict[int, Future[Any]] = {}
        self._kept: OrderedDict[int, Tensors] = OrderedDict()

    def __enter__(self) -> LayersAhead:
        if self._workers > 1:
            self._pool = on_layers(self._read, self._workers)
        return self

    def __exit__(self, *error: Any) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._pool is not None:
            self._pool.__exit__(*error)

    def __call__(self, layer: int) -> Tensors:
        """The tensors of one layer after conversion."""
        if layer not in self._kept:
            self._kept[layer] = self._made(layer)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[layer]

    def _made(self, layer: int) -> Tensors:
        at = self._order.index(layer)
        if self._pool is None:
            self._start(layer)
            made = self._pending.pop(layer).result()
            self._start(*self._order[at + 1 : at + 2])
            return made
        self._start(*self._order[at : at + self._workers])
        return _unpacked(self._pool.result(self._pending.pop(layer)))

    def _start(self, *layers: int) -> None:
        """Begin what is neither made nor begun."""
        for layer in layers:
            if layer in self._pending or layer in self._kept:
                continue
            if self._pool is None:
                self._pending[layer] = self._thread.submit(self._make, self._read, self._plan, layer)
            else:
                task = (self._make, self._plan, layer)
                self._pending[layer] = self._pool.submit(in_worker, _packed, task)


def _packed(read: LayerReader, task: tuple[Make, Plan, int]) -> list[tuple[str, torch.dtype, Any, Any]]:
    """Tensors as arrays of bytes, which are sent whole and leave nothing in shared memory."""
    make, plan, layer = task
    return [
        (name, tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).numpy())
        for name, tensor in make(read, plan, layer).items()
    ]


def _unpacked(packed: list[tuple[str, torch.dtype, Any, Any]]) -> Tensors:
    return {name: torch.from_numpy(raw).view(dtype).reshape(shape) for name, dtype, shape, raw in packed}
