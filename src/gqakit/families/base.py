"""A model family as data: where its attention tensors are and what may be done with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How checkpoints of one `model_type` name and shape their attention.

    Tensor names are `{attention}.{projection}.weight` (and `.bias` where the checkpoint has one), with
    `{layer}` in `attention` standing for the layer's index; the same path leads to the module in transformers.

    Attributes:
        model_type: the `model_type` of the config.
        attention: path of a layer's attention module.
        query, key, value, output: names of the four projections inside it.
        key_norm: name of a normalisation between the key projection and the rotary embedding, or None. Where
            the tensor exists, key channels cannot be mixed.
        num_layers, num_heads, num_kv_heads: config keys.
    """

    model_type: str
    attention: str = "model.layers.{layer}.self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    key_norm: str | None = None
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    num_kv_heads: str = "num_key_value_heads"

    def weight(self, layer: int, projection: str) -> str:
        """Name of a projection's weight."""
        return f"{self.attention.format(layer=layer)}.{projection}.weight"

    def bias(self, layer: int, projection: str) -> str:
        """Name of a projection's bias, whether or not the checkpoint has one."""
        return f"{self.attention.format(layer=layer)}.{projection}.bias"
