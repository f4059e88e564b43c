"""What the output's shards will hold, known from shapes alone before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gqakit.errors import OutputError

from . import dtypes
from .header import Shard, TensorInfo, build_header, tensor_nbytes
from .index import listed
from .reader import Checkpoint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Replacement:
    """A tensor of the output that is not a copy.

    `dtype` is a safetensors code, None for the source tensor's. `produce` is called once, when the bytes are
    due. `after` places a name that the source lacks: behind that tensor, in its shard; it means nothing for
    other names.
    """

    shape: tuple[int, ...]
    dtype: str | None
    produce: Callable[[], torch.Tensor]
    after: str | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of an output shard: `info` counts bytes in the output, `content` is what fills them."""

    info: TensorInfo
    content: TensorInfo | Replacement


@dataclass(frozen=True)
class PlannedShard:
    """One output shard of `size` bytes. `header` is None if nothing changes: the source file is copied."""

    source: Shard
    header: bytes | None
    tensors: tuple[PlannedTensor, ...]
    size: int

    @property
    def name(self) -> str:
        """The file name, that of the source shard."""
        return self.source.name


Replacements = Mapping[str, Replacement | None]
"""What the output holds under a name instead of the source's tensor; None leaves it out."""


def plan_shards(source: Checkpoint, replaced: Replacements) -> tuple[PlannedShard, ...]:
    """The output's shards: those of the source in its order, with `replaced` put in.

    Raises OutputError if a replacement has an unknown dtype or a negative size, or if an addition has no
    dtype or no tensor to follow.
    """
    followers = _followers(source, replaced)
    shards = tuple(_plan_shard(shard, replaced, followers) for shard in source.shards)
    planned = {tensor.info.name for shard in shards for tensor in shard.tensors}
    added = {name: item for name, item in replaced.items() if item is not None}
    if lost := [f"{name} (after {item.after!r})" for name, item in added.items() if name not in planned]:
        raise OutputError(
            f"{source.path}: tensors to add follow none of the source's: {listed(lost)}. "
            "Set `after` to a tensor of the source, or replace one that exists."
        )
    return shards


def output_bytes(source: Checkpoint, replaced: Replacements) -> int:
    """Bytes of all shard files of the output. Raises as `plan_shards`."""
    return sum(shard.size for shard in plan_shards(source, replaced))


def _followers(source: Checkpoint, replaced: Replacements) -> dict[str, list[str]]:
    """For each tensor the added ones right behind it, in the order of `replaced`."""
    followers: dict[str, list[str]] = {}
    for name, item in replaced.items():
        if item is not None and name not in source.tensors and item.after is not None:
            followers.setdefault(item.after, []).append(name)
    return followers


def _names_in_order(shard: Shard, followers: Mapping[str, list[str]]) -> Iterator[str]:
    stack = [info.name for info in reversed(shard.tensors)]
    while stack:
        name = stack.pop()
        yield name
        stack.extend(reversed(followers.get(name, ())))


def _plan_shard(shard: Shard, replaced: Replacements, followers: Mapping[str, list[str]]) -> PlannedShard:
    old = {info.name: info for info in shard.tensors}
    names = list(_names_in_order(shard, followers))
    if not any(name in replaced for name in names):
        copies = tuple(PlannedTensor(info, info) for info in shard.tensors)
        return PlannedShard(shard, None, copies, shard.size)
    contents = {name: content for name in names if (content := replaced.get(name, old.get(name))) is not None}
    infos = _lay_out([_target(name, content, shard, old) for name, content in contents.items()])
    header = build_header(shard.metadata, infos)
    tensors = tuple(PlannedTensor(_shifted(info, len(header)), contents[info.name]) for info in infos)
    return PlannedShard(shard, header, tensors, tensors[-1].info.end if tensors else len(header))


def _target(
    name: str, content: TensorInfo | Replacement, shard: Shard, old: Mapping[str, TensorInfo]
) -> TensorInfo:
    """What the output holds under `name`, its bytes counted from zero."""
    if isinstance(content, TensorInfo):
        return _shifted(content, -content.start)
    dtype = content.dtype or (old[name].dtype if name in old else None)
    if dtype is None or not dtypes.is_writable(dtype):
        raise OutputError(
            f"{shard.name}: tensor {name!r} to write has dtype {dtype!r}, expected a safetensors code "
            "such as F32 or BF16 (None only where the source has the tensor)."
        )
    shape = tuple(content.shape)
    nbytes = tensor_nbytes(dtype, shape)
    if nbytes is None or any(size < 0 for size in shape):
        raise OutputError(f"{shard.name}: tensor {name!r} to write has shape {shape}, expected sizes >= 0.")
    return TensorInfo(name, dtype, shape, shard.name, 0, nbytes)


def _lay_out(infos: list[TensorInfo]) -> list[TensorInfo]:
    placed = _in_a_row(infos)
    if any(info.start * 8 % dtypes.BITS[info.dtype] for info in placed):
        # A changed dtype can leave a wide element at an odd offset, which older safetensors cannot load.
        # Widest first, as safetensors itself writes, has no such place.
        placed = _in_a_row(sorted(infos, key=lambda info: -dtypes.BITS[info.dtype]))
    return placed


def _in_a_row(infos: list[TensorInfo]) -> list[TensorInfo]:
    placed, at = [], 0
    for info in infos:
        placed.append(_shifted(info, at - info.start))
        at = placed[-1].end
    return placed


def _shifted(info: TensorInfo, by: int) -> TensorInfo:
    return replace(info, start=info.start + by, end=info.end + by)


def count_parameters(shards: tuple[PlannedShard, ...]) -> int:
    """Elements of all tensors."""
    return sum(math.prod(tensor.info.shape) for shard in shards for tensor in shard.tensors)
