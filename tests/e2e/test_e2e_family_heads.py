"""Encoders below a head: their tensors then stand under the prefix of the base model, which the matrix does not have."""

from pathlib import Path

import pytest
import torch
import transformers
from family_models import CONFIGS, FAMILIES, inputs_of, run

import gqakit
from gqakit.pipeline import convert
from gqakit.planning.make import plan

HEADS = {
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "electra": "ElectraForPreTraining",
    "distilbert": "DistilBertForMaskedLM",
    "deit": "DeiTForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
}


@pytest.mark.parametrize("family", HEADS)
def test_an_encoder_below_its_head_is_converted(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, FAMILIES[family].config)(**CONFIGS[family])
    getattr(transformers, HEADS[family])(config).save_pretrained(tmp_path / "source")
    options = {"method": "neighbour", "merge": "mean", "format": "grouped", "progress": False}
    for out, ratio in (("same", 1.0), ("half", 0.5)):
        made = plan(tmp_path / "source", kv_ratio=ratio, **options)
        convert(tmp_path / "source", tmp_path / out, plan=made, progress=False)
    models = [gqakit.load(tmp_path / out, dtype=torch.float32) for out in ("source", "same", "half")]
    source, same, half = (run(model, inputs_of(family)) for model in models)
    assert type(models[1]).__name__ == f"Gqakit{HEADS[family]}"
    assert torch.allclose(source, same, atol=2e-5)
    assert not torch.allclose(source, half, atol=2e-5)
