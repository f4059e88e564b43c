"""A model family as data: where its attention layers are, how their tensors lie, and what may be done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gqakit.errors import FamilyError

Role = Literal["query", "key", "value", "output"]
ROLES: tuple[Role, ...] = ("query", "key", "value", "output")
Positions = Literal["rotary", "none", "bias"]
Layout = Literal["split", "blocks", "interleaved", "quarters"]
EQUAL_GROUPS: tuple[Layout, ...] = ("interleaved", "quarters")
"""Layouts that a grouped checkpoint cannot keep, as they need groups of one size; it has blocks."""
Task = Literal["text", "embedding", "image", "speech", "translation", "pair"]


@dataclass(frozen=True)
class Names:
    """Names of the projections below a layer's home. With a fused projection the first three are the same."""

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"

    @classmethod
    def fused(cls, name: str, output: str) -> Names:
        """One projection that makes queries, keys and values."""
        return cls(name, name, name, output)

    def of(self, role: Role) -> str:
        """The name of one projection."""
        return getattr(self, role)


@dataclass(frozen=True)
class Stack:
    """The attention layers of one kind: a decoder's own, an encoder's, or those between the two.

    Paths are relative to the base model, or to `Family.root` below it, with `{layer}` for the index.

    Attributes:
        name: what the option `stacks` calls it.
        part: config key of the part of a config that is about it, in a model of several; "" where there is one.
        home: path of the module that holds the projections.
        names: the projections below it.
        caller: the module below `home` that calls the attention function; "" where it is `home` itself.
        block: path of the transformer block around it.
        stored_home, stored_names: the same in the checkpoint's tensor names, where those differ.
        num_layers, num_heads: config keys; alternatives are separated by `|`.
        cached: whether generation keeps these keys and values.
        cross: whether keys and values come from another stack's output.
    """

    name: str = "decoder"
    home: str = "layers.{layer}.self_attn"
    names: Names = field(default_factory=Names)
    caller: str = ""
    block: str = "layers.{layer}"
    stored_home: str | None = None
    stored_names: Names | None = None
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    cached: bool = True
    cross: bool = False
    part: str = ""

    def config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of a model's config is about these layers."""
        inner = config.get(self.part) if self.part else None
        return {**config, **inner} if isinstance(inner, Mapping) else config

    def attention(self, layer: int) -> str:
        """Path of the module that calls the attention function."""
        home = self.home.format(layer=layer)
        return f"{home}.{self.caller}" if self.caller else home

    def module(self, layer: int, role: Role) -> str:
        """Path of a projection."""
        return f"{self.home.format(layer=layer)}.{self.names.of(role)}"

    def stored(self, layer: int, role: Role) -> str:
        """A projection's name in the checkpoint, without the checkpoint's prefix and `.weight`."""
        return self.stored_norm(layer, (self.stored_names or self.names).of(role))

    def stored_norm(self, layer: int, name: str | None) -> str:
        """The name in the checkpoint of a module beside the projections, such as a normalisation."""
        return f"{(self.stored_home or self.home).format(layer=layer)}.{name}"


@dataclass(frozen=True)
class Family:
    """How checkpoints of one `model_type` name and shape their attention.

    Attributes:
        model_type: the `model_type` of the config.
        classes: transformers' auto classes that load it, each with the family's own class.
        stacks: its kinds of attention layers.
        prefixes: what may stand before a stack's path in tensor names; the base model alone is saved without.
        task: what kind of input the model takes.
        hidden_size, head_dim, num_kv_heads: config keys, alternatives separated by `|`. `num_kv_heads` is None
            where the family's own code is multi-head only, so that no stock engine runs fewer.
        count_kv_heads: the number of KV heads from the config, where one key does not say it.
        layout: separate tensors for q, k and v; or one, in blocks q, k, v; or one, in turns for each KV head; or
            one, in four parts, each with the queries, values and keys of a quarter of the heads.
        transposed: weights are stored `[in, out]`.
        positions: rotary embedding of queries and keys; a bias for each query head on the scores, which ties
            query heads to their places; or nothing inside attention. A function of the config where that says it.
        rotary_share: share of a head's channels that rotate, where the config does not say.
        partly_rotary: its code follows such a share. True of those with one of their own; transformers' code of the others
            rotates all channels whatever the config says.
        rotary_dim: config key of the number of channels that rotate, in families that do not state a share.
        rotary_pairs: which channels rotate together: `j` with `j` + half the rotary width, or neighbours.
        key_norm: name of a normalisation between key projection and position embedding, or None. Where the tensor
            exists, key channels cannot be mixed before it.
        query_norm: the same for queries.
        sinks: name of a tensor with a score for each query head that takes weight and reads no value, or None.
        norm_switch: config key that says whether the two are there, in families that have them only in some models.
        norm_after_rope: they stand behind the position embedding, not before it.
        encoder_classes: classes that are the encoder, or the tower for images, alone, each with the kind of input it takes.
        beside: patterns of the tensors below an attention layer's home that are no projections and stay as they are.
            Any other is refused, as what is not known cannot be merged rightly.
        handles: the switches of `SWITCHES` that its forward pass runs for any number of KV heads.
        watched: its own attention modules call transformers' attention interface, so that calibration can look on.
        root: of a multimodal family, path below the base model of the text model that its stacks are in.
        section: config key under which it keeps the text model's config; where there is none, the config is flat.
        texts: the text models that it may hold, by their `model_type`; the first is what it holds without saying so.
    """

    model_type: str
    classes: Mapping[str, str]
    stacks: tuple[Stack, ...] = (Stack(),)
    prefixes: tuple[str, ...] = ("model.", "")
    task: Task = "text"
    hidden_size: str = "hidden_size"
    head_dim: str = "head_dim"
    num_kv_heads: str | None = "num_key_value_heads"
    count_kv_heads: Callable[[Mapping[str, Any]], int | None] | None = None
    layout: Layout | Callable[[Mapping[str, Any]], Layout] = "split"
    transposed: bool = False
    positions: Positions | Callable[[Mapping[str, Any]], Positions] = "rotary"
    rotary_share: float = 1.0
    partly_rotary: bool = False
    rotary_dim: str | None = None
    rotary_pairs: Literal["half", "interleaved"] = "half"
    key_norm: str | None = None
    query_norm: str | None = None
    sinks: str | None = None
    norm_switch: str | None = None
    norm_after_rope: bool = False
    encoder_classes: Mapping[str, Task] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    watched: bool = True
    root: str = ""
    section: str = ""
    texts: Mapping[str, Family] = field(default_factory=dict)

    def part(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of a config is about the stacks: the text model's section of a multimodal one, else all of it."""
        inner = config.get(self.section) if self.section else None
        return inner if isinstance(inner, Mapping) else config

    def layout_in(self, config: Mapping[str, Any]) -> Layout:
        """How q, k and v lie in their tensors in a model with this config."""
        return self.layout(config) if callable(self.layout) else self.layout

    def positions_in(self, config: Mapping[str, Any]) -> Positions:
        """How a model with this config knows of positions."""
        return self.positions(config) if callable(self.positions) else self.positions

    def with_part(self, config: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
        """The config with another `part`."""
        return dict(part) if self.part(config) is config else {**config, self.section: dict(part)}

    def holding(self, config: Mapping[str, Any]) -> Family:
        """A multimodal family with the text model that a config says it holds; any other as it is.

        Raises:
            FamilyError: that text model is not known here.
        """
        if not self.texts or self.part(config) is config:
            return self
        kind = self.part(config).get("model_type", next(iter(self.texts)))
        if kind not in self.texts:
            raise FamilyError(
                f"config.json: this {self.model_type} holds a text model {kind!r}. Known in it: {', '.join(self.texts)}"
            )
        return self.around(self.texts[kind])

    def around(self, text: Family) -> Family:
        """A multimodal family with the stacks and the attention of a text model."""
        own = ("model_type", "classes", "prefixes", "root", "section", "texts")
        return replace(text, **{name: getattr(self, name) for name in own})

    def as_named(self, names: Iterable[str]) -> Family:
        """The family of a checkpoint that is of one of these classes: of an encoder alone only its layers."""
        alone = next((self.encoder_classes[name] for name in names if name in self.encoder_classes), None)
        if alone is None:
            return self
        stacks = tuple(stack for stack in self.stacks if stack.name in ("encoder", "vision"))
        return replace(self, stacks=stacks, task=alone)

    @property
    def data(self) -> str:
        """The option that names what it runs on: text, images or audio."""
        return {"image": "images", "pair": "images", "speech": "audio"}.get(self.task, "text")

    @property
    def unit(self) -> str:
        """What is counted of that."""
        return "images" if self.task == "image" else "tokens"

    @property
    def config(self) -> str:
        """Transformers' configuration class, which is named like the base model."""
        return self.classes["AutoModel"].removesuffix("Model") + "Config"


def classes(prefix: str, *heads: str) -> dict[str, str]:
    """Auto classes of a base model and its heads, where class names follow the rule: `LlamaForCausalLM`, …"""
    return {"AutoModel": f"{prefix}Model"} | {f"AutoModel{head}": f"{prefix}{head}" for head in heads}


def causal(prefix: str) -> dict[str, str]:
    """The auto classes of an ordinary decoder: base model, language model, sequence classifier."""
    return classes(prefix, "ForCausalLM", "ForSequenceClassification")


def lookup(config: Mapping[str, Any], keys: str) -> Any:
    """The first of the alternatives `a|b|c` that a config has, or None."""
    return next((config[key] for key in keys.split("|") if config.get(key) is not None), None)
