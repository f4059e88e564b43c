"""Losses of single layers: measured the quick way, they are those of really converted checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_fixtures import Models
from tiny_models import prompt_ids
from transformers import BertConfig, BertForQuestionAnswering

import gqakit
from gqakit.calibration.store import StatisticsFile
from gqakit.conversion.convert import Writing, convert_checkpoint
from gqakit.core.grouping import Partition
from gqakit.data.samples import text_batches
from gqakit.models.layers import parameters_of_layer, tensors_of_layer
from gqakit.models.source import Source
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.measure import Bench, Prober
from gqakit.planning.layer_loss.probe import LayerProbe
from gqakit.planning.make import plan


def divergence(source: Path, other: Path, windows: torch.Tensor) -> float:
    """`KL(source ‖ other)` at every position, each model run as a whole."""
    with torch.inference_mode():
        logp, logq = (
            gqakit.load(path, dtype=torch.float32)(input_ids=windows, use_cache=False).logits.log_softmax(-1)
            for path in (source, other)
        )
    return float((logp.exp() * (logp - logq)).sum(-1).double().mean())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("side", ["both", "key", "value"])
def test_a_loss_is_that_of_the_checkpoint_with_only_that_layer_converted(
    model: Models, moments: Models, family: str, side: str
) -> None:
    source = Source.open(model(family, kv_heads=4))
    known = StatisticsFile.open(moments(source.path))
    windows = prompt_ids(24).repeat(2, 1)
    batches = text_batches(windows, cached=True)
    bench = Bench("fold", batches, "cpu")
    how = {"format": "grouped", "method": "neighbour", "statistics": known.path}
    made = plan(source.path, kv_heads=2, progress=False, **how)
    prober = Prober(bench, LayerReader(source, known, behind_norm=made.merging.behind_norm))
    alone, chosen = Partition.identity(4).labels, (0, 1, 0, 1)
    for layer in (1, 3):
        layers = [each.model_copy(update={"key": alone, "value": alone}) for each in made.layers]
        changed = {name: chosen for name in ("key", "value") if side in ("both", name)}
        layers[layer] = layers[layer].model_copy(update=changed)
        one = made.model_copy(update={"layers": tuple(layers)})
        convert_checkpoint(source, one, known, Path("one"), "", Writing(overwrite=True))
        ((_, loss),) = prober.measure(layer, [(layer, side, chosen)])
        assert loss == pytest.approx(divergence(source.path, Path("one"), windows), rel=1e-3)
        assert loss > 1e-4


def test_the_source_s_own_weights_lose_nothing_and_the_model_is_left_as_it_was(model: Models) -> None:
    source = Source.open(model())
    spec = source.spec
    running = gqakit.load(model(), dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in running.state_dict().items()}
    probe = LayerProbe(running, spec, prompt_ids(16))
    second, zeros = 0.0, dict[str, torch.Tensor]()
    for layer in range(spec.num_layers):
        tensors = tensors_of_layer(spec, layer, source.layer(layer))
        assert probe.divergence(layer, tensors) == 0.0
        wrong = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        lost = probe.divergence(layer, wrong)
        assert lost > 1e-3
        if layer == 1:
            second, zeros = lost, wrong
    assert all(torch.equal(tensor, before[name]) for name, tensor in running.state_dict().items())
    assert probe.divergence(1, zeros) == second, "an earlier layer once more"


def test_two_workers_find_what_one_finds(model: Models, moments: Models) -> None:
    source = model(kv_heads=4)
    made = {}
    for workers in (1, 2):
        measure = {"measure_tokens": 64, "window": 32, "losses": f"{workers}.jsonl", "workers": workers}
        made[workers] = plan(source, kv_ratio=0.5, statistics=moments(source), progress=False, **measure)
    assert made[1] == made[2]
    one, two = (sorted(Path(f"{workers}.jsonl").read_text().splitlines()) for workers in (1, 2))
    assert one == two
    assert len(one) == 1 + 4 * 3


def test_a_model_that_answers_questions_is_measured_by_where_it_puts_the_answer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.5
    )
    BertForQuestionAnswering(config).save_pretrained(tmp_path / "bert")
    source = Source.open(tmp_path / "bert")
    spec = source.spec
    running = gqakit.load(tmp_path / "bert", dtype=torch.float32)
    windows = torch.arange(4, 28).view(2, 12)
    probe = LayerProbe(running, spec, text_batches(windows, cached=False))
    tensors = tensors_of_layer(spec, 1, source.layer(1))
    assert probe.divergence(1, tensors) == 0.0
    changed = {name: 2 * tensor for name, tensor in tensors.items()}
    parameters = parameters_of_layer(spec, running, 1)
    with torch.inference_mode():
        before = running(input_ids=windows)
        found = probe.divergence(1, changed)
        for name, tensor in changed.items():
            parameters[name].copy_(tensor)
        after = running(input_ids=windows)
    expected = 0.0
    for one, other in ((before.start_logits, after.start_logits), (before.end_logits, after.end_logits)):
        logp, logq = one.log_softmax(-1), other.log_softmax(-1)
        expected += float((logp.exp() * (logp - logq)).sum(-1).mean()) / 2
    assert expected > 1e-3  # more than rounding
    assert found == pytest.approx(expected, rel=1e-4)
