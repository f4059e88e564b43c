"""Which key head and which value head each query head reads, as a grouped `config.json` says it. Pure Python."""

from __future__ import annotations

from typing import Any, NamedTuple

FORMAT_VERSION = 2


class HeadMaps(NamedTuple):
    """The two head maps of one layer, each with one label for each query head.

    `merged_keys`: where maps behind a normalisation merge keys, the cached head of each that the projection makes.
    """

    key_head_of_query: tuple[int, ...]
    value_head_of_query: tuple[int, ...]
    merged_keys: tuple[int, ...] | None = None

    @property
    def num_key_heads(self) -> int:
        """Heads in the layer's key cache."""
        return max(self.key_head_of_query) + 1

    @property
    def num_value_heads(self) -> int:
        """Heads in the layer's value cache."""
        return max(self.value_head_of_query) + 1


def read_layers(section: dict[str, Any], num_layers: int, num_query_heads: int | None) -> list[HeadMaps]:
    """The head maps of every layer, checked.

    Args:
        section: the `gqakit` entry of a grouped checkpoint's `config.json`.
        num_layers: number of attention layers of the model.
        num_query_heads: number of query heads in each layer; None where layers differ.

    Raises:
        ValueError: the format version is not known, or maps are missing or malformed (all of them named).
    """
    version = section.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"config.json: gqakit.format_version is {version!r}, this code reads {FORMAT_VERSION}. "
            "Use a gqakit release that reads it, or convert the checkpoint again."
        )
    layers = section.get("layers")
    if not isinstance(layers, list) or len(layers) != num_layers:
        seen = len(layers) if isinstance(layers, list) else layers
        raise ValueError(f"config.json: gqakit.layers must list {num_layers} layers, got {seen!r}.")
    problems = [
        f"layer {index}, {name}: {problem}"
        for index, layer in enumerate(layers)
        for heads in [num_query_heads or max(1, len(layer.get("key_head_of_query") or ()))]
        for name in HeadMaps._fields
        if (count := None if name == "merged_keys" else heads) or name in layer
        if (problem := _map_problem(layer.get(name), count)) is not None
    ]
    if problems:
        raise ValueError("config.json: gqakit.layers is malformed. " + " ".join(problems))
    return [HeadMaps(*(tuple(layer[name]) for name in HeadMaps._fields if name in layer)) for layer in layers]


def _map_problem(labels: Any, num_query_heads: int | None) -> str | None:
    if not isinstance(labels, (list, tuple)) or len(labels) != (num_query_heads or len(labels)):
        seen = len(labels) if isinstance(labels, (list, tuple)) else labels
        return f"expected one label for each of {num_query_heads} query heads, got {seen!r}."
    if not all(type(label) is int for label in labels) or set(labels) != set(range(max(labels) + 1)):
        return f"labels must be the integers 0..n-1, each used, got {list(labels)}."
    return None
