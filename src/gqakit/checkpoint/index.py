"""`model.safetensors.index.json`: which shard holds which tensor, checked against the shards themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqakit.errors import CheckpointError

from .header import Shard
from .jsonio import parse_object, pretty, read_bytes

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SHOWN = 5


@dataclass(frozen=True)
class Index:
    """An index: `weight_map` (tensor name to shard file), `metadata`, the whole `document`, its `data`."""

    weight_map: dict[str, str]
    metadata: dict[str, Any] | None
    document: dict[str, Any]
    data: bytes

    @property
    def shard_names(self) -> list[str]:
        """The shard files, sorted."""
        return sorted(set(self.weight_map.values()))


def read_index(path: Path) -> Index:
    """Parse an index. Raises CheckpointError if it is malformed or names a file in another directory."""
    data = read_bytes(path)
    document = parse_object(data, str(path), distinct=True)
    weight_map, metadata = document.get("weight_map"), document.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: has no weight_map, expected an object from tensor name to shard file."
        )
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata is {metadata!r}, expected an object.")
    for name, shard in weight_map.items():
        # The writer reuses shard names, so a name with a folder in it would write outside the output.
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or "\\" in shard
            or not shard.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{path}: tensor {name!r} is mapped to {shard!r}, expected the name of a .safetensors file "
                "in the same directory."
            )
    return Index(weight_map, metadata, document, data)


def check_shards_exist(directory: Path, index: Index) -> None:
    """Raises CheckpointError that lists every shard of the index that is not in the directory."""
    names = index.shard_names
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(names)} shards of {INDEX_NAME} are missing: "
            f"{listed(missing)}. The download is incomplete; fetch them."
        )


def check_agreement(directory: Path, index: Index, shards: Iterable[Shard]) -> None:
    """Raises CheckpointError that lists tensors which the index and the shard headers place differently."""
    held = {(info.name, shard.name) for shard in shards for info in shard.tensors}
    mapped = set(index.weight_map.items())
    problems = []
    if absent := sorted(mapped - held):
        problems.append(f"mapped to a shard that does not hold them: {listed(_places(absent))}")
    if extra := sorted(held - mapped):
        problems.append(f"in a shard but not mapped to it: {listed(_places(extra))}")
    if problems:
        raise CheckpointError(
            f"{directory}: {INDEX_NAME} and the shards disagree; tensors {'; tensors '.join(problems)}. "
            "Shards of different models or downloads are mixed; fetch the directory again."
        )


def build_index(source: Index, weight_map: Mapping[str, str], total_size: int, parameters: int) -> bytes:
    """The index of a written checkpoint; the source's own bytes if nothing in it changes.

    `total_size` is the bytes of all tensors, `parameters` their elements (written where the source has them).
    """
    names = sorted(weight_map) if list(source.weight_map) == sorted(source.weight_map) else list(weight_map)
    metadata = {**(source.metadata or {}), "total_size": total_size}
    if "total_parameters" in metadata:
        metadata["total_parameters"] = parameters
    document = {
        **source.document,
        "metadata": metadata,
        "weight_map": {name: weight_map[name] for name in names},
    }
    return source.data if document == source.document else pretty(document)


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _places(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name} ({shard})" for name, shard in pairs]
