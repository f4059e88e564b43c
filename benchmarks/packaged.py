"""Attention weights of real models that ship inside packages: MiniLM-L6 (12 heads) and Whisper base (8 heads)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from gqakit.core.attention import AttentionWeights
from gqakit.core.statistics import weight_inner
from gqakit.models.source import Source
from zoo import MINILM, WHISPER_BASE, PackagedModel, fetch

Layers = Iterator[tuple[str, AttentionWeights]]


def minilm() -> Layers:
    """The 6 layers of all-MiniLM-L6-v2: 12 heads of width 32, model width 384, all projections biased."""
    return _layers(MINILM, ("encoder",))


def whisper() -> Layers:
    """The 18 attentions of Whisper base: 8 heads of width 64, model width 512; keys have no bias."""
    return _layers(WHISPER_BASE, ("encoder", "decoder", "cross"))


def _layers(model: PackagedModel, stacks: tuple[str, ...]) -> Layers:
    source = Source.open(fetch(model), stacks)
    for layer in range(source.spec.num_layers):
        yield source.spec.name(layer), source.layer(layer)


MODELS: dict[str, Callable[[], Layers]] = {"MiniLM-L6": minilm, "Whisper base": whisper}


def inner_products(layers: Layers) -> list[tuple[str, Tensor]]:
    """What QCQA searches on, layer by layer: inner products of the flattened key and value heads together."""
    return [(name, weight_inner(weights.key) + weight_inner(weights.value)) for name, weights in layers]
