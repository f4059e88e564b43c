"""`inspect`: what a checkpoint is and what can be made of it, from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gqakit.core.budget import GIB
from gqakit.core.grouping import Grouping, Partition
from gqakit.models.engines import names_that_run
from gqakit.models.families.base import lookup
from gqakit.models.inspect_options import InspectOptions
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.options import takes


@dataclass(frozen=True)
class FormatReach:
    """Whether a checkpoint can be converted to a format, to which numbers of KV heads per layer, and why or why not."""

    format: str
    reachable: bool
    kv_heads: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Inspection:
    """A summary of one checkpoint. Sizes in bytes; the cache as asked for and at 16 bits, which engines use."""

    path: str
    model_type: str
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
    cache_dtype: str
    kv_bytes_per_token: int
    kv_bytes_per_token_16_bit: int
    context: int
    batch: int
    kv_gib: float
    kv_gib_16_bit: float
    stacks: tuple[str, ...]
    cached: bool
    formats: tuple[FormatReach, ...]

    def __repr__(self) -> str:
        heads = max(self.key_heads + self.value_heads)
        return (
            f"Inspection({self.model_type}: {self.num_layers} layers, {self.num_heads} query heads, {heads} KV heads of "
            f"width {self.head_dim}, {self.kv_bytes_per_token:,} bytes per token)"
        )


@takes(InspectOptions)
def inspect(model: str | Path, options: InspectOptions) -> Inspection:
    """What a checkpoint is, what its cache takes, and which formats and budgets can be reached. Reads headers only.

    Args:
        model: directory or hub name.
        options: see `InspectOptions`; also as keywords.

    Raises:
        CheckpointError, FamilyError: when it cannot be read or is not known.
    """
    source = Source.open(model, options.stacks)
    checkpoint, spec = source.checkpoint, source.spec
    stored = checkpoint.info(spec.tensor(0, "key"))
    vectors = spec.cache.bytes_per_token // spec.cache.element_bytes
    width = {"float32": 4, "bfloat16": 2, "float16": 2}.get(options.precision or "", spec.cache.element_bytes)
    context = options.context or _usual_context(source)
    positions = context * options.batch
    return Inspection(
        path=str(source.path),
        model_type=spec.model_type,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        key_heads=spec.key_heads,
        value_heads=spec.value_heads,
        head_dim=spec.head_dim,
        hidden_size=spec.hidden_size,
        dtype=stored.dtype,
        biases=tuple(sorted({spec.tensor(0, role).split(".")[-2] for role in spec.biased})),
        key_norm=spec.channels.locked,
        rotary_dim=2 * len((spec.behind_norm or spec.channels).first),
        weight_bytes=checkpoint.nbytes,
        tensors=len(checkpoint.tensors),
        shards=len(checkpoint.shards),
        cache_dtype=options.precision or str(stored.torch_dtype).removeprefix("torch."),
        kv_bytes_per_token=vectors * width,
        kv_bytes_per_token_16_bit=vectors * 2,
        context=context,
        batch=options.batch,
        kv_gib=vectors * width * positions / GIB,
        kv_gib_16_bit=vectors * 2 * positions / GIB,
        stacks=spec.stacks,
        cached=spec.is_cached,
        formats=_formats(spec),
    )


USUAL_CONTEXT = 32768


def _usual_context(source: Source) -> int:
    """A long context, but no longer than what is learned for each position allows (GPT-2, Whisper, BART)."""
    config = source.full_config
    learned = source.spec.family.positions_in(config) == "none"
    longest = lookup(config, "max_source_positions|max_position_embeddings|n_positions")
    return min(USUAL_CONTEXT, longest) if learned and longest else USUAL_CONTEXT


def _formats(spec: ModelSpec) -> tuple[FormatReach, ...]:
    if spec.is_grouped:
        why = "already a grouped checkpoint; convert from the model it was made of"
        return tuple(FormatReach(name, False, (), why) for name in ("uniform", "grouped"))
    heads, family = spec.key_heads[0], spec.family.model_type
    if heads == 1:
        why = "one KV head per layer is the least"
        return tuple(FormatReach(name, False, (), why) for name in ("uniform", "grouped"))
    equal = tuple(n for n in range(1, heads) if Grouping.shared(_blocks(heads, n)).is_uniform)
    why = "equal groups, the same in every layer: any engine that runs the source"
    uniform = FormatReach("uniform", True, equal, why)
    if not spec.can_be_uniform:
        why = f"the {family} architecture has as many KV heads as query heads"
        uniform = FormatReach("uniform", False, (), why)
    why = f"any groups: {names_that_run('grouped', family, tied=spec.tied)}"
    if names_that_run("separate", family, tied=spec.tied) != "transformers":
        why += "; with separate maps for keys and values only transformers keeps the smaller cache"
    return uniform, FormatReach("grouped", True, tuple(range(1, heads)), why)


def _blocks(num_heads: int, num_groups: int) -> Partition:
    return Partition.of(head * num_groups // num_heads for head in range(num_heads))
