"""`gqakit uptrain` as it is typed: refusals before any work, several processes, a process that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command import gqakit, refused, succeeds
from family_models import CONFIGS, VARIANTS, build_family
from tiny_fixtures import Models
from tiny_models import all_tensors, hashes, tokenizer
from uptrain_runs import SHORT, Pair, metrics, pair, work_directory


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture
def tiny(folder: Path) -> Pair:
    return pair(folder)


def typed(tiny: Pair, out: str, **changes: Any) -> list[str]:
    """The arguments of the run `SHORT`."""
    words = ["uptrain", str(tiny.student), "--teacher", str(tiny.teacher), "-o", out, "--device", "cpu"]
    for name, value in {**SHORT, **changes}.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    return words


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_json_and_rows(tiny: Pair) -> None:
    told = json.loads(succeeds(*typed(tiny, "out", max_steps=2), "--json").out)
    assert told["step"] == 2
    assert told["after"].keys() == {"loss", "perplexity", "kl"}
    refused(7, *typed(tiny, "out", max_steps=2), says=("not empty", "--overwrite"))
    again = succeeds(*typed(tiny, "out", max_steps=2), "--overwrite")
    assert "perplexity" in again.out
    assert "step 0, held out" in again.err


def test_a_training_that_only_did_harm_is_told(tiny: Pair) -> None:
    harmful = succeeds(*typed(tiny, "out", max_steps=2, learning_rate=0.5, slower=0), "--json")
    assert json.loads(harmful.out)["best_step"] == 0
    assert "a --learning-rate below 0.5" in harmful.err
    before, after = all_tensors(tiny.student), all_tensors(Path("out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "No step did better" not in succeeds(*typed(tiny, "good", max_steps=2)).err


def test_what_does_not_fit_is_refused_before_any_work(tiny: Pair, model: Models) -> None:
    start = ("uptrain", tiny.student, "-o", "out")
    small = Path("small.txt")
    small.write_text("Too little text.")
    empty = Path("empty.txt")
    empty.write_text(" \n")
    wide, deep = model(vocab_size=160), model(num_hidden_layers=4)
    refused(3, *start, "--teacher", wide, says=("cannot teach", "vocab_size is 160 in the teacher, 128"))
    refused(3, *start, "--teacher", deep, "--hidden", 1, "--window", 32, says=("num_hidden_layers is 4",))
    refused(2, *start, "--teacher", tiny.teacher, "--window", 512, says=("takes at most 256",))
    refused(2, *start, "--kl", 1, says=("--teacher",))
    wrong = gqakit(*start, "--train", "heads")
    assert (wrong.code, "'heads'" in wrong.err) == (2, True)
    many = ("--learning-rate", 0, "--window", 1, "--report-to", "paper")
    refused(2, *start, *many, says=("--learning-rate is 0", "--window is 1", "--report-to is 'paper'"))
    refused(9, *start, "--text", small, "--window", 32, says=("too few for one window",))
    refused(9, *start, "--text", empty, says=("empty",))
    refused(9, *start, "--window", 32, "--tokens", 64, "--held-out", 2, says=("nothing is left to train on",))
    refused(7, "uptrain", tiny.student, "-o", tiny.student, says=("is the source",))
    inside = ("uptrain", tiny.student, "-o", tiny.teacher, "--teacher", tiny.teacher, "--window", 32)
    refused(7, *inside, "--overwrite", says=("is the teacher",))


@pytest.mark.parametrize("variant", ["gpt_neox", "gpt2", "falcon_alibi"])
def test_families_whose_tensors_lie_otherwise(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, VARIANTS[variant][0], {**CONFIGS[VARIANTS[variant][0]], "vocab_size": 128})
    source = build_family(Path("source"), variant)
    (source / "tokenizer_config.json").unlink(missing_ok=True)
    tokenizer().save_pretrained(source)
    how = ("--window", 16, "--tokens", 320, "--max-steps", 1, "--held-out", 2, "--warmup-steps", 0)
    succeeds("uptrain", source, "-o", "out", "--train", "attention", *how)
    before, after = all_tensors(source), all_tensors(Path("out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("attention" in name or "attn" in name for name in changed)
    if variant == "gpt_neox":  # transformers renames its head
        ran = gqakit("uptrain", source, "-o", "all", *how)
        assert ran.code == 3
        assert "--train attention" in ran.err


def test_other_tasks_are_refused() -> None:
    source = build_family(Path("source"), "vit")
    refused(2, "uptrain", source, "-o", "out", says=("causal language models", "is a vit"))


def test_a_tracker_that_is_not_installed_names_its_package(tiny: Pair) -> None:
    pytest.importorskip("accelerate")
    try:
        import trackio  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        refused(10, *typed(tiny, "out"), "--report-to", "trackio", says=("pip install trackio",))


def in_two_processes(*words: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*launch, *words], capture_output=True, text=True, env=environment(), check=False)


def assert_alike(one: Path, two: Path) -> None:
    """Metrics and weights of two runs up to rounding."""
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    tensors = all_tensors(two)
    for name, tensor in all_tensors(one).items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_processes_come_to_what_one_does(tiny: Pair) -> None:
    how = {"gradient_accumulation_steps": 1, "max_steps": 4}
    ran = in_two_processes("-m", "gqakit", *typed(tiny, "two", **how), "-q")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("Uptrained") == 1
    tiny.run("one", gradient_accumulation_steps=2, max_steps=4)
    assert_alike(Path("one"), Path("two"))
    record = json.loads((Path("two") / "gqakit-uptrain.json").read_text())
    assert (record["processes"], record["examples_per_step"]) == (2, 2)


def test_sharded_models_are_killed_and_come_to_what_one_process_does(tiny: Pair) -> None:
    script = str(Path(__file__).with_name("fsdp2_on_cpu.py"))
    words = (*typed(tiny, "two", gradient_accumulation_steps=1, max_steps=4), "-q")
    ran = in_two_processes(script, "--die-at", "3", *words)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stderr.count("died") == 2
    tiny.run("one", gradient_accumulation_steps=2, max_steps=4)
    assert_alike(Path("one"), Path("two"))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_and_run_again(tiny: Pair) -> None:
    how = {"max_steps": 24, "eval_steps": 2, "held_out": 1}
    words = [sys.executable, "-m", "gqakit", *typed(tiny, "killed", **how)]
    running = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment())
    store = work_directory(Path("killed"))
    until = time.monotonic() + 300  # a busy machine takes its time
    while not list(store.glob("checkpoint-*/whole")) and time.monotonic() < until:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not Path("killed").exists(), "the run was over before it could be killed"
    result = tiny.run("killed", **how)
    assert result.resumed_from > 0
    tiny.run("whole", **how)
    assert metrics(Path("killed")) == metrics(Path("whole"))
    assert hashes(Path("killed"))["model.safetensors"] == hashes(Path("whole"))["model.safetensors"]
