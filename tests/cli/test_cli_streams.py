"""Results on standard output, everything else on standard error; JSON that is only JSON; quiet that is quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, Ran, gqakit, succeeds
from tiny_fixtures import Models

COMMANDS = [
    "inspect",
    "calibrate",
    "plan",
    "plan show",
    "plan diff",
    "convert",
    "convert dry",
    "verify",
    "evaluate",
    "generate",
    "methods",
]


@pytest.fixture
def arguments(model: Models, moments: Models) -> dict[str, tuple[Any, ...]]:
    """A command line for each command, with what it needs made before."""
    source = model(kv_heads=4)
    budget = ("--kv-heads", 2, "--statistics", moments(source), "--method", "neighbour")
    succeeds("plan", source, *budget, "-o", "made.json")
    succeeds("convert", source, "-o", "made", "--plan", "made.json")
    return {
        "inspect": ("inspect", source),
        "calibrate": ("calibrate", source, "-o", "m.safetensors", *SMALL),
        "plan": ("plan", source, *budget, "-o", "plan.json"),
        "plan show": ("plan", "show", "made.json"),
        "plan diff": ("plan", "diff", "made.json", "made.json"),
        "convert": ("convert", source, "-o", "out", "--kv-heads", 3, *SMALL, "--evaluate"),
        "convert dry": ("convert", source, "-o", "out", "--plan", "made.json", "--dry-run"),
        "verify": ("verify", source, "made"),
        "evaluate": ("evaluate", source, "made", *SMALL),
        "generate": ("generate", "made", "The best way", "--max-new-tokens", 4),
        "methods": ("methods",),
    }


def shell(*args: Any, **env: str) -> Ran:
    """Run a command in a process of its own, its streams piped."""
    ran = subprocess.run(
        [sys.executable, "-m", "gqakit", *map(str, args)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_valid_and_alone_on_standard_output(arguments: dict[str, tuple], command: str) -> None:
    ran = succeeds(*arguments[command], "--json")

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(ran.out, parse_constant=no_constant) is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_plain_lines_without_escape_codes(arguments: dict[str, tuple], command: str) -> None:
    ran = succeeds(*arguments[command])
    assert ran.out.strip()
    assert "\x1b" not in ran.out + ran.err
    assert "\r" not in ran.out
    assert not set("─│┃━┏╭") & set(ran.out)


def test_infinities_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    from gqakit.cli.console import Screen
    from gqakit.evaluation.language import LanguageScores

    Screen(as_json=True).json({"scores": [LanguageScores(float("inf"), float("nan"), 0.5, 3)]})
    assert json.loads(capsys.readouterr().out) == {
        "scores": [{"perplexity": None, "kl": None, "top1": 0.5, "tokens": 3}]
    }


def test_quiet_and_piped_in_a_process_of_its_own(model: Models) -> None:
    source = model(kv_heads=4)
    command = ("convert", source, "--kv-heads", 2, "--method", "neighbour", *SMALL, "--evaluate")
    quiet = shell(*command, "-o", "quiet", "-q", "--json")
    assert (quiet.code, quiet.err) == (0, "")
    assert json.loads(quiet.out)["plan"]["method"] == "neighbour"
    loud = shell(*command, "-o", "loud")
    assert loud.code == 0
    steps = [line.split(":")[0] for line in loud.err.splitlines()]
    remarks, done = steps[:2], steps[2:]
    assert remarks[0] == "Steps"
    assert remarks[1].startswith("Calibrating on the small text that comes with gqakit")
    assert done == ["calibrate", "plan", "convert", f"evaluate {source.name}", "evaluate loud"]
    assert "\x1b" not in loud.out + loud.err
    assert "\r" not in loud.out + loud.err


def test_an_error_in_a_process_of_its_own() -> None:
    ran = shell("inspect", "./nowhere")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("gqakit: error: nowhere: no such directory.")
    assert len(ran.err.splitlines()) == 1


def test_generation_is_repeatable_and_sampling_depends_on_the_seed(model: Models) -> None:
    command = ("generate", model(kv_heads=4), "How to cook", "--max-new-tokens", 12)
    assert succeeds(*command).out == succeeds(*command).out
    hot = (*command, "--temperature", 1.5, "--seed")
    assert succeeds(*hot, 1).out == succeeds(*hot, 1).out != succeeds(*hot, 2).out


def test_a_chat_prompt(model: Models, copy: Models) -> None:
    command = ("How to cook", "--chat", "--max-new-tokens", 3)
    succeeds("generate", model(kv_heads=4), *command)
    plain = copy()
    (plain / "chat_template.jinja").unlink()
    ran = gqakit("generate", plain, *command)
    assert ran.code == 2
    assert "no chat template; leave out --chat" in ran.err


def test_verbose_logs_and_names_the_layers(model: Models, arguments: dict[str, tuple]) -> None:
    ran = succeeds(*arguments["verify"], "--verbose")
    assert "Relative error of each layer's attention output" in ran.out


def test_inspect_says_what_can_be_reached(model: Models) -> None:
    seen = json.loads(succeeds("inspect", model("mistral"), "--json").out)
    assert seen["head_dim"] * seen["num_heads"] == 64 != seen["hidden_size"]
    uniform, grouped = seen["formats"]
    assert (uniform["kv_heads"], grouped["kv_heads"]) == ([1, 2, 4], [1, 2, 3, 4, 5, 6, 7])
    assert seen["kv_bytes_per_token"] == 2 * 4 * 8 * 8 * 4
    half = json.loads(succeeds("inspect", model("qwen2", dtype=__import__("torch").bfloat16), "--json").out)
    assert half["dtype"] == "BF16"
    assert half["biases"] == ["k_proj", "q_proj", "v_proj"]
    assert half["kv_bytes_per_token"] == 2 * 4 * 8 * 4 * 2
    assert "after a key normalisation" in succeeds("inspect", model("qwen3")).out


def test_nothing_appears_beside_the_outputs(model: Models) -> None:
    succeeds("inspect", model())
    succeeds("evaluate", model(), *SMALL)
    succeeds("generate", model(), "Hi", "--max-new-tokens", 1)
    assert list(Path().iterdir()) == []
