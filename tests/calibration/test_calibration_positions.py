"""Layers that say of their own positions what no rotary module of the model does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from gqakit.calibration.collect import collect_statistics
from gqakit.core.statistics import LayerStatistics
from gqakit.models.load import use_attention_interface
from gqakit.models.source import Source

IDS = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(0))


def collected(model: Any, folder: Path) -> dict[int, LayerStatistics]:
    """Statistics of the saved model."""
    model.eval().save_pretrained(folder)
    source = Source.open(folder)
    use_attention_interface(model, source.spec)
    return collect_statistics(model, source.spec, IDS)


def test_a_layer_without_positions_has_no_frequencies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SmolLM3Config(
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "no_rope_layers": [1, 0]},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    )
    model = SmolLM3ForCausalLM(config)
    statistics = collected(model, tmp_path)
    assert torch.equal(statistics[0].frequencies, model.model.rotary_emb.inv_freq.double())
    assert not statistics[1].frequencies.any()
    assert statistics[1].distances.any()


def test_a_table_of_angles_gives_the_frequencies_and_every_moment_is_filled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=32, rotary_dim=8)
    statistics = collected(GPTJForCausalLM(config), tmp_path)
    for layer in statistics.values():
        assert layer.frequencies == pytest.approx([1.0, 0.1, 0.01, 0.001], rel=1e-5)
        assert torch.allclose(layer.distances.sum(1), torch.ones(4).double())
        assert layer.value.diagonal().min() > 0
