"""Budgets that cannot be met, names that are not known, options that contradict each other."""

from __future__ import annotations

import pytest
from command import SMALL, gqakit, refused, succeeds
from tiny_fixtures import Models

BUDGETS = [
    (5, ("--kv-ratio", 0.01), ("kv_ratio 0.01", "0.1250", "128 bytes per token")),
    (2, ("--kv-ratio", 1.5), ("--kv-ratio is 1.5", "at most 1")),
    (2, ("--kv-ratio", 0), ("--kv-ratio is 0", "above 0")),
    (2, ("--kv-ratio", -0.5), ("--kv-ratio is -0.5", "above 0")),
    (2, ("--kv-ratio", "nan"), ("--kv-ratio is nan",)),
    (5, ("--kv-heads", 99), ("kv_heads 99", "8 KV heads", "1 to 8")),
    (2, ("--kv-heads", 0), ("--kv-heads is 0", "at least 1")),
    (2, ("--kv-heads", 2, "--kv-ratio", 0.5), ("give one budget", "--kv-ratio and --kv-heads")),
    (2, (), ("budget", "--kv-ratio")),
    (2, ("--kv-gib", 1), ("--kv-gib needs --context",)),
    (2, ("--kv-gib", 1, "--context", 0), ("--context is 0", "at least 1")),
    (2, ("--kv-gib", 1, "--context", 100, "--batch", 0), ("--batch is 0", "at least 1")),
    (5, ("--kv-gib", 1e-9, "--context", 100), ("kv_gib 1e-09", "0.1250")),
    (2, ("--kv-ratio", 0.5, "--context", 100), ("--context and --batch belong to --kv-gib",)),
    (5, ("--kv-bytes-per-token", 10_000), ("1024 bytes per token", "at most 1")),
    (5, ("--kv-bytes-per-token", 3), ("kv_bytes_per_token 3", "0.1250", "128 bytes per token")),
]


@pytest.mark.parametrize(
    ("code", "budget", "says"), BUDGETS, ids=[" ".join(map(str, case[1])) or "none" for case in BUDGETS]
)
def test_a_budget_that_cannot_be_met(model: Models, code: int, budget: tuple, says: tuple[str, ...]) -> None:
    """What is wrong by itself is wrong usage (2); what this model cannot be made to meet is code 5."""
    refused(code, "plan", model(), *budget, "-o", "plan.json", says=says)
    refused(code, "convert", model(), *budget, "-o", "out", *SMALL, says=says)


@pytest.mark.parametrize(
    ("option", "name", "near"),
    [
        ("--method", "optimum", "optimal"),
        ("--merge", "folds", "fold"),
        ("--format", "uniforn", "uniform"),
        ("--allocation", "unifrom", "uniform"),
    ],
)
def test_an_unknown_name_is_told_near_ones(model: Models, option: str, name: str, near: str) -> None:
    for command in (("plan", model(), "-o", "plan.json"), ("convert", model(), "-o", "out")):
        says = (repr(name), f"Did you mean '{near}'", "Known: ")
        refused(2, *command, "--kv-heads", 2, option, name, says=says)


def test_mqa_with_more_than_one_head(model: Models) -> None:
    says = ("mqa", "kv_heads 2", "--kv-heads 1", "0.125")
    refused(5, "plan", model(), "--kv-heads", 2, "--method", "mqa", "-o", "plan.json", says=says)


def test_uniform_takes_the_most_equal_groups_within_the_budget_and_says_so(model: Models) -> None:
    how = ("--kv-ratio", 0.375, "--format", "uniform", "--method", "neighbour")
    ran = succeeds("plan", model(), *how)
    assert "kv_ratio 0.375 asked, 0.25 reached" in ran.out
    assert "the most that the same number of heads in every layer allows" in ran.out


def test_uniform_with_a_number_of_heads_that_does_not_divide(model: Models, moments: Models) -> None:
    how = ("--kv-heads", 3, "--format", "uniform")
    says = ("8 KV heads do not divide into 3", "--kv-heads 1, 2, 4, 8", "--format grouped")
    refused(5, "plan", model(), *how, "-o", "plan.json", says=says)
    refused(5, "convert", model(), *how, "-o", "out", "--statistics", moments(model()), says=says)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        (
            "--device",
            "cdua",
            ("device", "'cdua'", "Did you mean 'cuda'", "Known: auto, cpu, cuda, cuda:1, mps"),
        ),
        ("--dtype", "float23", ("dtype", "'float23'", "Did you mean", "float32")),
        ("--dtype", "int8", ("--dtype", "'int8'", "bfloat16, f16, f32, float16, float32")),
    ],
)
def test_an_unknown_device_or_precision(
    model: Models, option: str, value: str, says: tuple[str, ...]
) -> None:
    refused(2, "calibrate", model(), "-o", "m.safetensors", *SMALL, option, value, says=says)
    refused(2, "evaluate", model(), *SMALL, option, value, says=says)
    refused(2, "generate", model(), "Hello", option, value, says=says)


def test_an_unknown_device_for_convert(model: Models) -> None:
    refused(2, "convert", model(), "-o", "out", "--kv-heads", 2, *SMALL, "--device", "tpu", says=("'tpu'",))


def test_a_gpu_that_is_not_there(model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(2, "evaluate", model(), *SMALL, "--device", "cuda", says=("no GPU", "--device cpu"))
    refused(2, "calibrate", model(), "-o", "s", *SMALL, "--device", "cuda:1", says=("no GPU", "--device cpu"))
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    refused(2, "evaluate", model(), *SMALL, "--device", "mps", says=("no Apple GPU", "--device cpu"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    refused(2, "evaluate", model(), *SMALL, "--device", "cuda:2", says=("torch sees 2: cuda:0, cuda:1",))


@pytest.mark.parametrize("size", ["lots", "4 GB of it", "0"])
def test_an_amount_of_memory_that_is_none(model: Models, size: str) -> None:
    how = ("--max-memory", size)
    refused(2, "evaluate", model(), *SMALL, *how, says=("--max-memory", f"'{size}'", "such as 4GiB or 800MB"))


def test_a_plan_and_a_budget(model: Models) -> None:
    succeeds("plan", model(), "--kv-heads", 2, "--method", "neighbour", "-o", "plan.json")
    refused(
        2,
        "convert",
        model(),
        "-o",
        "out",
        "--plan",
        "plan.json",
        "--kv-heads",
        2,
        says=("--plan", "not both"),
    )


def test_text_and_dataset(model: Models) -> None:
    command = ("calibrate", model(), "-o", "m.safetensors", "--text", "a.txt", "--dataset", "b")
    refused(2, *command, says=("give one of --text and --dataset",))


def test_an_empty_prompt_where_no_token_opens_a_text(model: Models) -> None:
    assert gqakit("generate", model(), "", "--max-new-tokens", 2).code == 0  # BOS opens it


@pytest.mark.parametrize(
    "args",
    [
        ("convert",),
        ("convert", "m"),
        ("convert", "m", "-o", "out", "--kv-heads", "two"),
        ("generate", "m", "p", "--max-new-tokens", 0),
        ("plan", "show"),
        ("convret", "m"),
        ("inspect", "m", "--nonsense"),
    ],
    ids=lambda a: " ".join(map(str, a)),
)
def test_what_the_parser_itself_refuses(args: tuple) -> None:
    ran = gqakit(*args)
    assert ran.code == 2
    assert ran.err.startswith("gqakit: error: ")
    assert len(ran.err.splitlines()) == 1
    assert ran.out == ""
