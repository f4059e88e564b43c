"""What a checkpoint is and what can be made of it, from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.checkpoint import Checkpoint
from gqakit.core.capacity import GIB
from gqakit.core.grouping import Grouping, Partition
from gqakit.families import FAMILIES, ModelSpec, describe_model


@dataclass(frozen=True)
class FormatReach:
    """Whether a checkpoint can be converted to a format, to how many KV heads a layer, and why or why not."""

    format: str
    reachable: bool
    kv_heads: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Inspection:
    """A summary of one checkpoint. Sizes in bytes; the cache is at the checkpoint's own precision."""

    path: str
    model_type: str
    fingerprint: str
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
    formats: tuple[FormatReach, ...]


def open_model(model: str) -> tuple[Checkpoint, ModelSpec]:
    """A checkpoint and its description.

    Raises:
        CheckpointError, FamilyError: see `Checkpoint.open` and `describe_model`.
    """
    checkpoint = Checkpoint.open(model)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    attention = next((i for n, i in checkpoint.tensors.items() if "attn" in n or "attention" in n), None)
    info = attention or next(iter(checkpoint.tensors.values()))
    return checkpoint, describe_model(FAMILIES, checkpoint.config, shapes, info.torch_dtype.itemsize)


def inspect_checkpoint(checkpoint: Checkpoint, spec: ModelSpec) -> Inspection:
    """The summary. Reads headers and, for the fingerprint, the first bytes of every tensor."""
    return Inspection(
        path=str(checkpoint.path),
        model_type=spec.model_type,
        fingerprint=checkpoint.fingerprint(),
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        key_heads=spec.key_heads,
        value_heads=spec.value_heads,
        head_dim=spec.head_dim,
        hidden_size=spec.hidden_size,
        dtype=checkpoint.info(spec.family.weight(0, spec.family.key)).dtype,
        biases=tuple(sorted(spec.biased)),
        key_norm=spec.channels.locked,
        rotary_dim=2 * len(spec.channels.first),
        weight_bytes=checkpoint.nbytes,
        tensors=len(checkpoint.tensors),
        shards=len(checkpoint.shards),
        kv_bytes_per_token=spec.cache.bytes_per_token,
        kv_gib_at_32k=spec.cache.bytes_at(32768) / GIB,
        formats=_formats(spec),
    )


def _formats(spec: ModelSpec) -> tuple[FormatReach, ...]:
    if spec.is_grouped:
        why = "already a grouped checkpoint; convert from the model it was made of"
        return tuple(FormatReach(name, False, (), why) for name in ("uniform", "grouped"))
    heads = spec.key_heads[0]
    if heads == 1:
        return tuple(
            FormatReach(name, False, (), "one KV head a layer is the least")
            for name in ("uniform", "grouped")
        )
    equal = tuple(n for n in range(1, heads) if Grouping.shared(_blocks(heads, n)).is_uniform)
    return (
        FormatReach(
            "uniform", True, equal, "equal groups, the same in every layer: any engine that runs the source"
        ),
        FormatReach(
            "grouped",
            True,
            tuple(range(1, heads)),
            "any groups: transformers, with gqakit or with trust_remote_code; with --kv-maps separate nothing else",
        ),
    )


def _blocks(num_heads: int, num_groups: int) -> Partition:
    return Partition.of(head * num_groups // num_heads for head in range(num_heads))
