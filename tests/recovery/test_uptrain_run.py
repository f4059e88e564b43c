"""Whole runs on tiny models: what they learn, what they write, how they go on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import all_tensors, hashes, logits
from transformers import AutoModelForCausalLM
from uptrain_runs import Killed, Pair, killed_after, metrics, pair, work_directory

from gqakit.conversion.verify import verify
from gqakit.errors import OutputError, TrainingError


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture
def tiny(folder: Path) -> Pair:
    return pair(folder)


def test_distillation_brings_the_student_nearer(tiny: Pair) -> None:
    result = tiny.run("out", max_steps=40, eval_steps=10, tokens=640, held_out=2)
    assert result.after["kl"] < 0.8 * result.before["kl"]
    assert result.best_step > 0
    steps = [line["loss"] for line in metrics(Path("out")) if "loss" in line]
    assert len(steps) == 40
    assert sum(steps[-10:]) < 0.7 * sum(steps[:10])
    assert not work_directory(Path("out")).exists()


def test_the_output_is_a_complete_checkpoint(tiny: Pair) -> None:
    tiny.run("out", train="attention")
    out, before, after = Path("out"), all_tensors(tiny.student), all_tensors(Path("out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "self_attn" in name}
    assert verify(str(tiny.teacher), "out", window=32).passed
    assert all(before[name].dtype == after[name].dtype for name in before)
    there = set(hashes(out))
    assert set(hashes(tiny.student)) <= there
    assert there - set(hashes(tiny.student)) == {"gqakit-uptrain.json", "gqakit-uptrain-metrics.jsonl"}
    record = json.loads((out / "gqakit-uptrain.json").read_text())
    assert record["options"]["train"] == "attention"
    assert record["result"]["step"] == 6
    card = (out / "README.md").read_text()
    assert "No training was done" not in card
    assert "## Uptraining" in card
    shipped = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True, dtype=torch.float32)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        seen = shipped(input_ids=ids).logits
    assert torch.isfinite(seen).all()
    assert not torch.equal(logits(out), logits(tiny.student))


def test_the_precision_of_the_output(tiny: Pair) -> None:
    tiny.run("out", max_steps=1, output_dtype="bfloat16")
    assert {tensor.dtype for tensor in all_tensors(Path("out")).values()} == {torch.bfloat16}
    assert json.loads((Path("out") / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_stock_checkpoint_stays_one(folder: Path) -> None:
    uniform = pair(folder, "qwen2", "uniform")
    uniform.run("out", max_steps=2)
    assert json.loads((Path("out") / "config.json").read_text())["model_type"] == "qwen2"
    assert not list(Path("out").glob("*.py"))


@pytest.mark.parametrize("save_steps", [1, 3])
def test_a_killed_run_comes_to_the_same_bits(tiny: Pair, save_steps: int) -> None:
    tiny.run("whole", save_steps=save_steps)
    for step in (2, 4):
        with pytest.raises(Killed):
            tiny.run("killed", save_steps=save_steps, notice=killed_after(step))
    result = tiny.run("killed", save_steps=save_steps)
    assert result.resumed_from == 3
    assert metrics(Path("killed")) == metrics(Path("whole"))
    assert hashes(Path("killed"))["model.safetensors"] == hashes(Path("whole"))["model.safetensors"]


def test_an_interrupted_run_with_other_options_is_refused_unless_restarted(tiny: Pair) -> None:
    with pytest.raises(Killed):
        tiny.run("out", notice=killed_after(4))
    before = hashes(Path())
    with pytest.raises(OutputError, match=r"learning_rate was 0\.003, is now 0\.001.*`restart=True`"):
        tiny.run("out", learning_rate=1e-3)
    assert {k: v for k, v in hashes(Path()).items() if not k.endswith("lock")} == {
        k: v for k, v in before.items() if not k.endswith("lock")
    }
    assert tiny.run("out", learning_rate=1e-3, restart=True).resumed_from == 0


def test_accumulating_two_is_a_batch_of_two(tiny: Pair) -> None:
    tiny.run("one", gradient_accumulation_steps=2, per_device_train_batch_size=1)
    tiny.run("two", gradient_accumulation_steps=1, per_device_train_batch_size=2)
    one, two = all_tensors(Path("one")), all_tensors(Path("two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    losses = [[line.get("loss", line.get("eval_loss")) for line in metrics(Path(n))] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_checkpointing_gradients_changes_nothing(tiny: Pair) -> None:
    tiny.run("plain", max_steps=2)
    tiny.run("checkpointed", max_steps=2, gradient_checkpointing=True)
    plain, checkpointed = (metrics(Path(name)) for name in ("plain", "checkpointed"))
    for ours, theirs in zip(plain, checkpointed, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_every_loss_and_bf16(tiny: Pair) -> None:
    result = tiny.run(
        "out",
        max_steps=2,
        ce=0.5,
        kl=1,
        hidden=0.1,
        top_k=20,
        temperature=2,
        dtype="bf16",
        early_stopping_patience=3,
    )
    assert set(result.after) == {"loss", "perplexity", "kl", "hidden"}
    line = metrics(Path("out"))[1]
    assert {"loss", "ce", "kl", "hidden", "grad_norm", "learning_rate"} <= line.keys()


def test_no_progress_stops_early_and_keeps_the_start(tiny: Pair) -> None:
    result = tiny.run("out", learning_rate=1e-30, max_steps=40, eval_steps=1, early_stopping_patience=2)
    assert (result.step, result.stopped_early, result.best_step) == (2, True, 0)
    assert hashes(Path("out"))["model.safetensors"] == hashes(tiny.student)["model.safetensors"]


def test_a_rate_that_does_harm_is_lowered_by_itself(tiny: Pair) -> None:
    harmful: dict[str, Any] = {"learning_rate": 2.7, "max_steps": 4, "eval_steps": 2}
    assert tiny.run("kept", slower=0, **harmful).best_step == 0
    said: list[int] = []
    result = tiny.run("out", slower=4, notice=lambda step, scores: said.append(step), **harmful)
    assert result.learning_rate == pytest.approx(0.1)
    assert said == [
        0,
        2,
        0,
        2,
        0,
        2,
        4,
        0,
        2,
        4,
    ]  # far off at once, far off at once, no better at the end, better
    assert result.after["kl"] < result.before["kl"]
    by_hand = tiny.run("by hand", learning_rate=result.learning_rate, max_steps=4, eval_steps=2)
    assert by_hand.after == result.after
    record = json.loads((Path("out") / "gqakit-uptrain.json").read_text())
    assert record["options"]["learning_rate"] == 2.7
    assert record["result"]["learning_rate"] == result.learning_rate
    assert f"learning rate {result.learning_rate:g}" in (Path("out") / "README.md").read_text()


def test_an_interrupted_run_knows_that_it_began_again(tiny: Pair) -> None:
    harmful: dict[str, Any] = {"learning_rate": 2.7, "max_steps": 4, "eval_steps": 2, "slower": 4}
    whole = tiny.run("whole", **harmful)
    evaluations = 0

    def kill_second(step: int, scores: Any) -> None:
        nonlocal evaluations
        evaluations += 1
        if evaluations > 2:
            raise Killed

    for _ in range(3):  # before an attempt's first save, twice, and after one
        evaluations = 0
        with pytest.raises(Killed):
            tiny.run("killed", notice=kill_second, **harmful)
    assert tiny.run("killed", **harmful).learning_rate == whole.learning_rate
    assert hashes(Path("killed"))["model.safetensors"] == hashes(Path("whole"))["model.safetensors"]


def test_a_loss_that_is_no_number_stops_with_its_step(tiny: Pair) -> None:
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan.*checkpoint-1.*`learning_rate`"):
        tiny.run(
            "out",
            learning_rate=1e30,
            warmup_steps=0,
            max_steps=4,
            eval_steps=100,
            save_steps=1,
            max_grad_norm=0,
        )
    assert not Path("out").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_is_merged_into_plain_weights(tiny: Pair) -> None:
    pytest.importorskip("peft")
    result = tiny.run("out", train="lora", lora_rank=2, learning_rate=2e-2)
    assert result.after["kl"] < result.before["kl"]
    before, after = all_tensors(tiny.student), all_tensors(Path("out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2
    # What was measured while the update lay beside the weights holds for the merged ones.
    rerun = Pair(tiny.teacher, Path("out")).run("again", max_steps=1, learning_rate=1e-30)
    assert rerun.before["kl"] == pytest.approx(result.after["kl"], rel=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_with_dropout_resumes_to_the_same_bits(tiny: Pair) -> None:
    pytest.importorskip("peft")
    how = {"train": "lora", "lora_dropout": 0.2, "lora_targets": "attention", "save_steps": 3}
    tiny.run("whole", **how)
    with pytest.raises(Killed):
        tiny.run("killed", notice=killed_after(4), **how)
    tiny.run("killed", **how)
    assert metrics(Path("killed")) == metrics(Path("whole"))
    assert hashes(Path("killed"))["model.safetensors"] == hashes(Path("whole"))["model.safetensors"]
