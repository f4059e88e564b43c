"""Shell commands of README and tutorials run as printed, on a tiny model; those of other machines are understood."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gqakit.cli.app import app
from gqakit.demonstration import packaged

README = Path(__file__).parents[2] / "README.md"
TUTORIALS = README.parent / "docs" / "tutorials"
NOTEBOOK = TUTORIALS / "first-steps.ipynb"


def commands(page: Path) -> list[str]:
    """Every `gqakit` line of a page's shell blocks, comments cut off."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("gqakit ")]


@pytest.mark.parametrize(
    ("page", "most"), [(README, 12), (TUTORIALS / "laptop.md", 8)], ids=["README", "laptop"]
)
def test_commands_run(model: Callable[..., Path], tmp_path: Path, page: Path, most: int) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat and looked at the rain. " * 400, encoding="utf-8")
    values = {"MODEL": str(model()), "OUT": str(tmp_path / "out"), "TEXT": str(text), "WORK": str(tmp_path)}
    found = commands(page)
    assert len(found) >= most, found
    for line in found:
        arguments = [re.sub(r"\$([A-Z]+)", lambda m: values[m[1]], word) for word in shlex.split(line)[1:]]
        if (
            arguments[0] in ("calibrate", "convert", "repair", "evaluate", "uptrain")
            and "--plan" not in arguments
        ):
            arguments += ["--tokens", "256", "--window", "64"]
            arguments += ["--steps", "2"] if arguments[0] == "repair" else []
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize("name", ["one-gpu", "many-gpus"])
def test_commands_for_other_machines_are_understood(name: str) -> None:
    known = getattr(typer.main.get_command(app), "commands", {})
    found = commands(TUTORIALS / f"{name}.md")
    assert found
    for line in found:
        _, command, *arguments = shlex.split(line)
        known[command].make_context(command, arguments)  # raises for an option that is none


def test_the_notebook_runs(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code cells, as plain Python, on a tiny model in place of the packaged one."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    display = types.ModuleType("IPython.display")
    display.HTML = str  # pyright: ignore[reportAttributeAccessIssue]  # which is there wherever a notebook runs
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(packaged, "fetch", lambda _: model("mistral", head_dim=64, kv_heads=4))
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert names["compared"].page.is_file()
    assert [layer.keys.shape[1] for layer in names["cache"].layers] == [2, 2, 2, 2]
    assert "fold 1/3, q4_0+h: 7.0% of the bytes" in capsys.readouterr().out


def test_the_notebook_holds_no_output_and_readme_opens_it() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert str(NOTEBOOK.relative_to(README.parent)) in README.read_text(encoding="utf-8")


def test_readme_states_no_unfilled_figure() -> None:
    text = README.read_text(encoding="utf-8")
    assert not re.search(r"\b(DEMO|MAIN)_TABLE\b|TODO|TBD", text)


def test_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
