"""Encoders of text: BERT and what shares its attention, DistilBERT, MPNet, ModernBERT."""

from __future__ import annotations

from typing import Any

from gqakit.models.families.base import Family, Names, Stack, classes

_BERT = Stack(
    name="encoder",
    home="encoder.layer.{layer}.attention",
    names=Names("self.query", "self.key", "self.value", "output.dense"),
    caller="self",
    block="encoder.layer.{layer}",
    cached=False,
)
_MPNET = Stack(
    name="encoder",
    home="encoder.layer.{layer}.attention.attn",
    names=Names("q", "k", "v", "o"),
    block="encoder.layer.{layer}",
    cached=False,
)
_DISTILBERT = Stack(
    name="encoder",
    home="transformer.layer.{layer}.attention",
    names=Names("q_lin", "k_lin", "v_lin", "out_lin"),
    block="transformer.layer.{layer}",
    num_layers="n_layers",
    num_heads="n_heads",
    cached=False,
)
_MODERN = Stack(
    name="encoder",
    home="layers.{layer}.attn",
    names=Names.fused("Wqkv", "Wo"),
    block="layers.{layer}",
    cached=False,
)
_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def _family(model_type: str, prefix: str, stack: Stack, base: str | None = None, **more: Any) -> Family:
    return Family(
        model_type,
        classes(prefix, *_HEADS),
        stacks=(stack,),
        prefixes=(f"{base or model_type}.", ""),
        task="embedding",
        num_kv_heads=None,
        **more,
    )


_NORM = ("output.LayerNorm.*",)  # of the block; it is stored below the attention's path

BERT = _family("bert", "Bert", _BERT, positions="none", beside=_NORM)
ROBERTA = _family("roberta", "Roberta", _BERT, positions="none", beside=_NORM)
XLM_ROBERTA = _family("xlm-roberta", "XLMRoberta", _BERT, "roberta", positions="none", beside=_NORM)
CAMEMBERT = _family("camembert", "Camembert", _BERT, "roberta", positions="none", beside=_NORM)
ROBERTA_PRELAYERNORM = _family(
    "roberta-prelayernorm",
    "RobertaPreLayerNorm",
    _BERT,
    "roberta_prelayernorm",
    positions="none",
    beside=("LayerNorm.*",),
)
ELECTRA = _family("electra", "Electra", _BERT, positions="none", beside=_NORM)
DISTILBERT = _family("distilbert", "DistilBert", _DISTILBERT, positions="none", hidden_size="dim")
MPNET = _family("mpnet", "MPNet", _MPNET, positions="bias", watched=False)
MODERNBERT = _family("modernbert", "ModernBert", _MODERN, "model", layout="blocks")
