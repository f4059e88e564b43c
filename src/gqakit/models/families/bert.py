"""Encoders of text: BERT, RoBERTa, MPNet."""

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
_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def _family(model_type: str, prefix: str, stack: Stack, **more: Any) -> Family:
    return Family(
        model_type,
        classes(prefix, *_HEADS),
        stacks=(stack,),
        prefixes=(f"{model_type}.", ""),
        task="embedding",
        num_kv_heads=None,
        **more,
    )


_NORM = ("output.LayerNorm.*",)  # of the block; it is stored below the attention's path

BERT = _family("bert", "Bert", _BERT, positions="none", beside=_NORM)
ROBERTA = _family("roberta", "Roberta", _BERT, positions="none", beside=_NORM)
MPNET = _family("mpnet", "MPNet", _MPNET, positions="bias", watched=False)
