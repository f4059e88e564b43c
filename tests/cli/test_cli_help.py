"""`--help` of every command: examples first, fits 80 columns, and quick because nothing heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from command import gqakit, succeeds
from typer.testing import CliRunner

from gqakit import __version__
from gqakit.cli.app import app
from gqakit.errors import GqakitError

HEAVY = ("torch", "transformers", "numpy", "datasets", "matplotlib", "safetensors", "pymoo", "scipy")
RUN_ALL = """
import contextlib, io, json, sys
from gqakit.cli import main
lines = json.loads(sys.argv[1])
for line in lines:
    sys.argv = ["gqakit", *line]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, err.getvalue(), sorted({heavy} & set(sys.modules))]))
"""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that the app has, with the words that name it, groups too."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))
LEAVES = {path: command for path, command in COMMANDS.items() if not hasattr(command, "commands")}


def named(path: tuple[str, ...]) -> str:
    """A command's words."""
    return " ".join(path) or "gqakit"


def outcomes(*lines: tuple[str, ...]) -> list[tuple[int, str, list[str]]]:
    """Exit code, standard error and heavy imports so far, of command lines one after another in a fresh process."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN_ALL.replace("{heavy}", repr(set(HEAVY))), json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in ran.stdout.splitlines()]


def test_the_walk_finds_commands_and_their_commands() -> None:
    assert {("convert",), ("plan",), ("plan", "diff"), ("methods",)} < COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS, ids=named)
def test_help(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = succeeds(*path, "--help")
    assert "Usage:" in ran.out
    assert ran.err == ""
    assert ran.out == succeeds(*path, "-h").out
    assert max(map(len, ran.out.splitlines())) <= 80
    for parameter in COMMANDS[path].params:
        if not getattr(parameter, "hidden", False):
            for spelling in [*getattr(parameter, "opts", []), *getattr(parameter, "secondary_opts", [])]:
                assert spelling in ran.out, f"{spelling} is cut or wrapped"


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if path[0] not in ("methods", "families")], ids=named
)
def test_help_begins_with_examples(path: tuple[str, ...]) -> None:
    text = succeeds(*path, "--help").out
    words = "plan" if path == ("plan", "make") else named(path)
    assert f"$ gqakit {words} " in text or f"$ gqakit {words}\n" in text
    assert text.index("$ gqakit") < text.index("╭")


def test_help_all_shows_the_options_of_searches_too() -> None:
    shown = {
        option: subprocess.run(
            [sys.executable, "-m", "gqakit", "convert", option], capture_output=True, text=True, check=True
        ).stdout
        for option in ("--help", "--help-all")
    }
    for flag in ("--p-accept", "--population"):
        assert flag not in shown["--help"]
        assert flag in shown["--help-all"]


def test_help_imports_nothing_heavy() -> None:
    lines = [(*path, option) for path in COMMANDS for option in ("--help", "-h")]
    found = outcomes(*lines, ("--version",))
    for line, (code, err, heavy) in zip(lines, found, strict=False):
        assert (code, err, heavy) == (0, "", []), line


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("plan", "MODEL", "--kv-ratio", "0.5", "--method", "foo"), "'foo'"),
        (("convert", "MODEL", "-o", "out", "--kv-ratio", "0.5", "--merge", "folds"), "Did you mean 'fold'"),
        (("convert", "MODEL", "-o", "out", "--kv-ratio", "2"), "at most 1"),
        (("convert", "MODEL", "-o", "out"), "--kv-ratio"),
        (("evaluate", "MODEL", "--dtype", "int7"), "'int7'"),
        (("convret",), "Did you mean 'convert'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_a_wrong_choice_is_refused_before_torch_is_imported(line: tuple[str, ...], says: str) -> None:
    ((code, err, heavy),) = outcomes(line)
    assert (code, heavy) == (2, [])
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "completed"),
    [(("gqakit", "eval"), "evaluate"), (("gqakit", "convert", "MODEL", "--merge", "fo"), "fold")],
)
def test_a_shell_completes_commands_and_choices(
    typed: tuple[str, ...], completed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_GQAKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(typed))
    monkeypatch.setenv("COMP_CWORD", str(len(typed) - 1))
    assert CliRunner().invoke(app, [], prog_name="gqakit").output.split() == [completed]


def test_help_names_every_command_and_every_exit_code() -> None:
    text = succeeds("--help").out
    for path in COMMANDS:
        if len(path) == 1:
            assert f" {path[0]} " in text
    flat = " ".join(text.split())
    pending = [GqakitError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        assert f" {kind.exit_code} " in flat, kind


def test_version() -> None:
    assert succeeds("--version").out == f"gqakit {__version__}\n"


@pytest.mark.parametrize("args", [(), ("plan",)], ids=["gqakit", "plan"])
def test_no_arguments_show_the_help(args: tuple[str, ...]) -> None:
    ran = gqakit(*args)
    assert ran.code in (0, 2)
    assert "Usage:" in ran.out + ran.err


def test_python_dash_m() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "gqakit", "--version"], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == (f"gqakit {__version__}\n", "")


def test_methods_lists_every_registry() -> None:
    from gqakit.core.merging import RULES
    from gqakit.grouping_methods import METHODS
    from gqakit.planning.allocation import ALLOCATIONS

    entries = json.loads(succeeds("methods", "--json").out)
    assert {(e["kind"], e["name"]) for e in entries} == {
        *(("method", name) for name in METHODS),
        *(("merge", name) for name in RULES),
        *(("allocation", name) for name in ALLOCATIONS),
    }
    assert all(entry["summary"] and entry["source"] for entry in entries)
    text = succeeds("methods").out
    assert all(entry["name"] in text for entry in entries)
