"""What a checkpoint is and what can be made of it, from its headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gqakit.checkpoint import Checkpoint
from gqakit.core.budget import GIB
from gqakit.core.grouping import Grouping, Partition
from gqakit.models.describe import describe_model
from gqakit.models.engines import names_that_run
from gqakit.models.families import FAMILIES
from gqakit.models.spec import ModelSpec


@dataclass(frozen=True)
class FormatReach:
    """Whether a checkpoint can be converted to a format, to how many KV heads a layer, and why or why not."""

    format: str
    reachable: bool
    kv_heads: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Inspection:
    """A summary of one checkpoint. Sizes in bytes; the cache is at the checkpoint's own precision.

    `fingerprint` is None unless it was asked for: every byte of the weights is read for it.
    """

    path: str
    model_type: str
    fingerprint: str | None
    num_layers: int
    num_heads: int
    key_heads: tuple[int, ...]
    value_heads: tuple[int, ...]
    head_dim: int
    hidden_size: int
    dtype: str
    biases: tuple[str, ...]
    key_norm: bool
    rotary_dim: int
    weight_bytes: int
    tensors: int
    shards: int
    kv_bytes_per_token: int
    kv_gib_at_32k: float
    stacks: tuple[str, ...]
    cached: bool
    formats: tuple[FormatReach, ...]


def open_model(model: str, stacks: Sequence[str] | None = None) -> tuple[Checkpoint, ModelSpec]:
    """A checkpoint and its description.

    Args:
        model: directory or hub name.
        stacks: the kinds of attention layers that matter; None for those that generation caches, or all where none is.

    Raises:
        CheckpointError, FamilyError: see `Checkpoint.open` and `describe_model`.
    """
    checkpoint = Checkpoint.open(model)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    attention = next((i for n, i in checkpoint.tensors.items() if "attn" in n or "attention" in n), None)
    info = attention or next(iter(checkpoint.tensors.values()))
    return checkpoint, describe_model(
        FAMILIES, checkpoint.config, shapes, info.torch_dtype.itemsize, stacks or None
    )


def inspect_checkpoint(checkpoint: Checkpoint, spec: ModelSpec, *, fingerprint: bool = False) -> Inspection:
    """The summary, from headers alone; with `fingerprint`, which reads all weights once."""
    return Inspection(
        path=str(checkpoint.path),
        model_type=spec.model_type,
        fingerprint=checkpoint.fingerprint() if fingerprint else None,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        key_heads=spec.key_heads,
        value_heads=spec.value_heads,
        head_dim=spec.head_dim,
        hidden_size=spec.hidden_size,
        dtype=checkpoint.info(spec.tensor(0, "key")).dtype,
        biases=tuple(sorted({spec.tensor(0, role).split(".")[-2] for role in spec.biased})),
        key_norm=spec.channels.locked,
        rotary_dim=2 * len(spec.channels.first),
        weight_bytes=checkpoint.nbytes,
        tensors=len(checkpoint.tensors),
        shards=len(checkpoint.shards),
        kv_bytes_per_token=spec.cache.bytes_per_token,
        kv_gib_at_32k=spec.cache.bytes_at(32768) / GIB,
        stacks=spec.stacks,
        cached=spec.is_cached,
        formats=_formats(spec),
    )


def _formats(spec: ModelSpec) -> tuple[FormatReach, ...]:
    if spec.is_grouped:
        why = "already a grouped checkpoint; convert from the model it was made of"
        return tuple(FormatReach(name, False, (), why) for name in ("uniform", "grouped"))
    heads, family = spec.key_heads[0], spec.family.model_type
    if heads == 1:
        return tuple(
            FormatReach(name, False, (), "one KV head a layer is the least")
            for name in ("uniform", "grouped")
        )
    equal = tuple(n for n in range(1, heads) if Grouping.shared(_blocks(heads, n)).is_uniform)
    uniform = FormatReach(
        "uniform", True, equal, "equal groups, the same in every layer: any engine that runs the source"
    )
    if not spec.can_be_uniform:
        uniform = FormatReach("uniform", False, (), why_not_uniform(spec))
    return (
        uniform,
        FormatReach(
            "grouped",
            True,
            tuple(range(1, heads)),
            f"any groups: {names_that_run('grouped', family)}{_apart(family)}",
        ),
    )


def _apart(family: str) -> str:
    """What becomes of keys and values that are grouped apart."""
    if names_that_run("separate", family) == "transformers":
        return ""
    return "; grouped with --kv-maps separate only transformers keeps the smaller cache"


def why_not_uniform(spec: ModelSpec) -> str:
    """Why stock code runs no converted checkpoint of a model."""
    return f"the {spec.family.model_type} architecture has as many KV heads as query heads"


def _blocks(num_heads: int, num_groups: int) -> Partition:
    return Partition.of(head * num_groups // num_heads for head in range(num_heads))
