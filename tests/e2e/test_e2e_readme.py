"""Commands and Python of README and docs run as printed, on a tiny model; all commands are understood as they stand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import gqakit
from gqakit.cli.app import app
from gqakit.demonstration import packaged

README = Path(__file__).parents[2] / "README.md"
DOCS = README.parent / "docs"
NOTEBOOK = DOCS / "tutorials" / "first-steps.ipynb"


def commands(page: Path, blocks_of: str = "sh|text") -> list[str]:
    """Every command of a page's blocks and of its indented lines, without comments and what launches it."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(rf"```(?:{blocks_of})\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in re.findall(r"^    gqakit .*$", text, flags=re.MULTILINE)]
    found = [
        re.fullmatch(r"(?:(?:torchrun|accelerate launch) .*-m )?(gqakit .*?)(?:  #.*)?", line)
        for line in lines
    ]
    return [re.sub(r"(?<=\w)…|[\[\]]", "", match[1]).strip() for match in found if match]


PAGES = {"README": README, **{page.stem: page for page in sorted(DOCS.rglob("*.md")) if commands(page)}}
RUN = {
    "README": 12, "laptop": 8, "index": 3, "recovery": 3, "kv-cache": 6, "serving": 8, "one-gpu": 3, "many-gpus": 5,
    "engines": 3,
}  # fmt: skip
"""Pages whose commands run, in one process and on a CPU, and how many they have at least.

The others need images, tasks that are fetched, numbers from a run, or several processes.
"""
CONVERTED = ("recovery", "kv-cache", "serving", "many-gpus")
"""Pages that begin with a conversion that is there, and have several ways to the same place."""


def test_pages_with_commands_are_found() -> None:
    assert {*RUN, "tasks", "key-driven", "methods", "scale"} == set(PAGES)


@pytest.mark.parametrize("name", RUN)
def test_commands_run(
    model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("work").mkdir()
    text = Path("my.txt")
    text.write_text("The cat sat on the mat and looked at the rain. " * 400, encoding="utf-8")
    if name == "serving":  # one engine wants heads as wide as the model, and a round width
        source = str(model("llama", hidden_size=256, intermediate_size=256))
    else:
        source = str(model("mistral", head_dim=64, kv_heads=4))
    values = {
        "MODEL": source,
        "OUT": "out",
        "TEXT": str(text),
        "WORK": "work",
        "FILE": str(text),
        "NEW": "new",
        **dict.fromkeys(("org/model", "SmolLM2-135M-Instruct"), source),
        "held-out.txt": str(text),
        "cuda": "cpu",
        "8": "2",  # of the heads that there are
    }
    if name in CONVERTED:
        equal = {"allocation": "uniform", "cardinality": "equal"}  # which every engine takes
        gqakit.convert(
            source, "CONVERTED", kv_ratio=0.5, format="grouped", text=str(text), tokens=256, window=64, progress=False,
            **(equal if name == "serving" else {}),
        )  # fmt: skip
        values["OUT"] = "CONVERTED"
    found = commands(PAGES[name], "sh")
    assert len(found) >= RUN[name], found
    for line in found:
        words = [re.sub(r"\$([A-Z]+)", lambda m: values[m[1]], word) for word in shlex.split(line)[1:]]
        arguments = [values.get(word, word) for word in words]
        if (
            arguments[0] in ("calibrate", "convert", "repair", "evaluate", "uptrain", "compare")
            and "--plan" not in arguments
        ):
            arguments += ["--tokens", "256", "--window", "64"]
            arguments += {"repair": ["--steps", "2"], "uptrain": ["--max-steps", "2"]}.get(arguments[0], [])
            arguments += ["--measure-tokens", "64"] if arguments[0] == "convert" else []
            if "--repair" in arguments:
                arguments += ["--repair-steps", "2", "--repair-tokens", "256"]
            if arguments[0] == "compare":
                arguments += ["--ways", "neighbour-mean", "--kv-ratios", "1/2", "--max-new-tokens", "2"]
        if name in CONVERTED:
            arguments += ["--overwrite"] if arguments[0] in ("convert", "repair", "uptrain") else []
            arguments += ["--no-evaluate"] if arguments[0] in ("convert", "repair") else []
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_understood(name: str) -> None:
    known = getattr(typer.main.get_command(app), "commands", {})
    for line in commands(PAGES[name]):
        _, command, *arguments = shlex.split(line)
        known[command].make_context(command, arguments)  # raises for an option or a choice that is none


def test_python_blocks_run(
    model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """README's, then how formats.md loads what it made."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model(), "path/to/model")
    Path("my.txt").write_text("The cat sat on the mat and looked at the rain. " * 400, encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('text="my.txt"', 'text="my.txt", tokens=256, window=64, format="grouped"'), names)
    assert capsys.readouterr().out.count("smaller") == 1
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "formats.md").read_text("utf-8"), flags=re.DOTALL)
    exec(code.replace('"OUT"', '"smaller"'), names)
    assert type(names["model"]).__name__ == type(gqakit.load("smaller")).__name__


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


def test_targets_of_make_are_no_files() -> None:
    """A target that is also a folder, such as docs, would be up to date once and for all."""
    content = README.with_name("Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", content, flags=re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", content, flags=re.MULTILINE)
    assert targets == set(phony.split())
