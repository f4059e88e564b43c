"""`--stacks`: who takes it, and that whatever follows a conversion follows what was converted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from command import refused, succeeds
from family_models import build_family
from test_e2e_kinds import data_for
from tiny_models import tokenizer

from gqakit.cli.app import app

CHOOSE = {"inspect", "calibrate", "plan", "convert", "correlate", "compare", "repair"}
"""Commands that choose kinds of layers. The others follow the checkpoint, or run models that have one kind."""
MERGED = ("--method", "neighbour", "--merge", "mean", "--format", "grouped", "--no-evaluate")


def test_the_commands_that_choose_kinds_of_layers_take_the_option() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    commands["plan"] = commands["plan"].commands["make"]  # what `gqakit plan MODEL` runs
    takes = {
        name for name, command in commands.items() if any("--stacks" in each.opts for each in command.params)
    }
    assert takes == CHOOSE


@pytest.fixture(params=["t5", "bart", "whisper"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_each_conversion_is_measured_over_all_that_any_of_them_converted(kind: str, tmp_path: Path) -> None:
    """With 2 layers of each kind that are halved: of three equal parts one, two or all."""
    source = build_family(tmp_path / "model", kind)
    if kind != "whisper":
        tokenizer().save_pretrained(source)
    data = data_for(kind)
    for out, stacks in (("one", "encoder"), ("two", "decoder,cross"), ("three", "encoder,decoder,cross")):
        succeeds("convert", source, "-o", out, "--kv-ratio", 0.5, "--stacks", stacks, *data, *MERGED)
        succeeds("verify", source, out)
        found = json.loads(succeeds("inspect", out, "--json").out)
        assert found["stacks"] == stacks.split(",")

    def rows(*outs: str) -> list[list[float | None]]:
        ran = succeeds("evaluate", source, *outs, *data, "--json")
        return [
            [row["kv_ratio"], row["kv_bytes_per_token"], row["kv_bytes_measured"]]
            for row in json.loads(ran.out)["checkpoints"]
        ]

    (_, part, _), one = rows("one")
    assert one == [0.5, part / 2, None]
    assert rows("two") == [[1, 2 * part, 2 * part], [0.5, part, part]]
    together = rows("one", "two", "three")
    assert [ratio for ratio, *_ in together] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6])
    assert [size for _, size, _ in together] == [3 * part, 2.5 * part, 2 * part, 1.5 * part]
    assert [kept for *_, kept in together] == [2 * part, 2 * part, part, part]  # an encoder keeps nothing


def test_what_runs_models_with_one_kind_of_layers_refuses_others_in_one_line(
    kind: str, tmp_path: Path
) -> None:
    source = build_family(tmp_path / "model", kind)
    says = ("causal language models", f"is a {kind}")
    refused(2, "uptrain", source, "-o", "trained", says=says)
    refused(4, "bench", source, says=("bench times how a model writes text",))
