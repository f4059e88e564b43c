"""Encoders of text: BERT, RoBERTa, MPNet."""

from __future__ import annotations

from gqakit.families.base import Family, Names, Stack

_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def _classes(prefix: str) -> dict[str, str]:
    return {"AutoModel": f"{prefix}Model"} | {f"AutoModel{head}": f"{prefix}{head}" for head in _HEADS}


_BERT = Stack(
    name="encoder",
    home="encoder.layer.{layer}.attention",
    names=Names("self.query", "self.key", "self.value", "output.dense"),
    caller="self",
    block="encoder.layer.{layer}",
    cached=False,
)
BERT = Family(
    "bert",
    _classes("Bert"),
    stacks=(_BERT,),
    prefixes=("bert.", ""),
    task="embedding",
    num_kv_heads=None,
    positions="none",
)
ROBERTA = Family(
    "roberta",
    _classes("Roberta"),
    stacks=(_BERT,),
    prefixes=("roberta.", ""),
    task="embedding",
    num_kv_heads=None,
    positions="none",
)
MPNET = Family(
    "mpnet",
    _classes("MPNet"),
    stacks=(
        Stack(
            name="encoder",
            home="encoder.layer.{layer}.attention.attn",
            names=Names("q", "k", "v", "o"),
            block="encoder.layer.{layer}",
            cached=False,
        ),
    ),
    prefixes=("mpnet.", ""),
    task="embedding",
    num_kv_heads=None,
    positions="bias",
    watched=False,
)
