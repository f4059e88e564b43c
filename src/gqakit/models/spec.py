"""What a checkpoint is, as far as its attention goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from gqakit.core.budget import CacheShape
from gqakit.core.rope import Channels
from gqakit.models.families.base import Family, Layout, Role, Stack

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

GROUPED_PREFIX = "gqakit_"
"""`model_type` of a `grouped` checkpoint: this and the family it was converted from."""


Gains = Literal["together", "each", "apart"]
"""One normalisation over all heads, `[heads · d]`; one of each head, `[heads, d]`; or a tensor for each head."""


class Site(NamedTuple):
    """One attention layer: its stack, and its index there."""

    stack: Stack
    index: int


@dataclass(frozen=True)
class ModelSpec:
    """The attention of one checkpoint: of the stacks that are to be converted.

    Attributes:
        family: its tensors' names.
        model_type: of the config, so `gqakit_llama` for a grouped Llama.
        sites: the attention layers, in the order of what is stated for each layer elsewhere.
        heads, key_heads, value_heads: query heads and KV heads of each layer.
        head_dim: channels of a head. widths: model width at each layer.
        channels: which channels of a key head may be mixed.
        behind_norm: which may be mixed behind the normalisation of keys; None without one.
        element_bytes: bytes of one cache element at the checkpoint's precision.
        biased: the projections that have a bias.
        prefix: what stands before a stack's path in tensor names.
        layout: how q, k and v lie in their tensors.
        fixed_queries: query heads must keep their places, as each has its own position bias.
        gains: how the normalisations of queries and keys keep a gain for each channel of each head; None where all heads
            have the same, which no merge changes.
        projected_heads: heads that the key projection of each layer makes, where maps behind a normalisation then merge
            them into `key_heads`; None where it makes just these.
        tied: the output matrix is the embeddings.
    """

    family: Family
    model_type: str
    sites: tuple[Site, ...]
    heads: tuple[int, ...]
    key_heads: tuple[int, ...]
    value_heads: tuple[int, ...]
    head_dim: int
    widths: tuple[int, ...]
    channels: Channels
    element_bytes: int
    biased: frozenset[Role]
    prefix: str
    layout: Layout
    fixed_queries: bool
    gains: Gains | None
    behind_norm: Channels | None = None
    projected_heads: tuple[int | None, ...] = ()
    tied: bool = False

    @property
    def num_layers(self) -> int:
        """Number of attention layers."""
        return len(self.sites)

    @property
    def num_heads(self) -> int:
        """Query heads of a layer: the same in all but a model with two towers, whose most this is."""
        return max(self.heads)

    @property
    def hidden_size(self) -> int:
        """Model width, likewise."""
        return max(self.widths)

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks that `sites` go through."""
        return tuple(dict.fromkeys(site.stack.name for site in self.sites))

    @property
    def noted_stacks(self) -> tuple[str, ...]:
        """`stacks` as files note them: empty where the family has only one kind."""
        return self.stacks if len(self.family.stacks) > 1 else ()

    @property
    def cache(self) -> CacheShape:
        """What is kept per token; in an encoder, what is made per token."""
        return CacheShape(self.key_heads, self.value_heads, self.head_dim, self.element_bytes)

    @property
    def is_cached(self) -> bool:
        """Whether any of these keys and values stay in a cache; an encoder's do not."""
        return any(site.stack.cached for site in self.sites)

    @property
    def is_grouped(self) -> bool:
        """Whether it is a `grouped` checkpoint, which only our runtime loads."""
        return self.model_type.startswith(GROUPED_PREFIX)

    @property
    def can_be_uniform(self) -> bool:
        """Whether the family's own code runs fewer KV heads than query heads."""
        return self.family.num_kv_heads is not None

    @property
    def turning(self) -> Channels:
        """The channels of keys as position embedding meets them."""
        return self.behind_norm or self.channels

    @property
    def norms(self) -> tuple[str, str]:
        """Names of the normalisations of queries and of keys, of a family that has them."""
        return self.family.query_norm or "", self.family.key_norm or ""

    @property
    def gain_norms(self) -> tuple[str, str]:
        """Names of the normalisations of queries and of keys with a gain for each head; "" where there are none."""
        return ("", "") if self.gains is None else self.norms

    def key(self, layer: int) -> str:
        """A layer as files call it: its index, with the stack where there are several."""
        stack, index = self.sites[layer]
        return f"{stack.name}.{index}" if len(self.family.stacks) > 1 else str(index)

    def name(self, layer: int) -> str:
        """A layer as messages call it."""
        return self.key(layer).replace(".", " ")

    def tensor(self, layer: int, role: Role, kind: str = "weight") -> str:
        """Name of a projection's weight or bias in the checkpoint, whether or not it is there."""
        stack, index = self.sites[layer]
        return f"{self.prefix}{stack.stored(index, role)}.{kind}"

    def gain(self, layer: int, norm: str, part: str = "weight") -> str:
        """Name of a normalisation's weight in the checkpoint."""
        stack, index = self.sites[layer]
        return f"{self.prefix}{stack.stored_norm(index, norm)}.{part}"

    def maps(self, layer: int, norm: str) -> str:
        """Name of the maps behind a normalisation, of a layer that merges keys there."""
        return self.gain(layer, norm, "maps")

    def sinks(self, layer: int) -> str:
        """Name of the sinks of query heads in the checkpoint, of a family that has them."""
        stack, index = self.sites[layer]
        return f"{self.prefix}{stack.stored_norm(index, self.family.sinks)}"

    def body(self, model: PreTrainedModel) -> nn.Module:
        """The module of a loaded model that the stacks are in: its base model, or the text model of a multimodal one."""
        return model.base_model.get_submodule(self.family.root)

    def attention_module(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The module of a loaded model that calls the attention function of a layer."""
        stack, index = self.sites[layer]
        return self.body(model).get_submodule(stack.attention(index))

    def projection(self, model: PreTrainedModel, layer: int, role: Role) -> nn.Module:
        """A projection of a loaded model. A fused one answers to three roles."""
        stack, index = self.sites[layer]
        return self.body(model).get_submodule(stack.module(index, role))

    def home(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The module of a loaded model that holds the projections of a layer."""
        stack, index = self.sites[layer]
        return self.body(model).get_submodule(stack.home.format(layer=index))

    def norm(self, model: PreTrainedModel, layer: int, name: str) -> nn.Module:
        """A normalisation beside the projections of a loaded model."""
        return self.home(model, layer).get_submodule(name)

    def block(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The transformer block around a layer's attention."""
        stack, index = self.sites[layer]
        return self.body(model).get_submodule(stack.block.format(layer=index))
