"""`--help` of everything, quickly: it imports neither torch nor transformers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from command import gqakit, succeeds

from gqakit import __version__
from gqakit.errors import GqakitError

COMMANDS = [
    (),
    ("inspect",),
    ("calibrate",),
    ("plan",),
    ("plan", "make"),
    ("plan", "show"),
    ("plan", "diff"),
    ("convert",),
    ("export",),
    ("correlate",),
    ("uptrain",),
    ("verify",),
    ("evaluate",),
    ("generate",),
    ("methods",),
    ("families",),
    ("demo",),
]
IMPORTED = """
import sys
sys.argv = ["gqakit", *{args!r}]
from gqakit.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "transformers", "numpy", "datasets", "matplotlib", "safetensors"}} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "gqakit")
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command: tuple[str, ...], flag: str) -> None:
    ran = succeeds(*command, flag)
    assert "Usage:" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize(
    "args",
    [["--help"], ["convert", "--help"], ["uptrain", "--help"], ["plan", "make", "--help"], ["--version"]],
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(args=args)], capture_output=True, text=True, check=True
    )
    assert ran.stderr.strip() == "[]"


def test_help_names_every_command_and_every_exit_code() -> None:
    text = succeeds("--help").out
    for command in {command[0] for command in COMMANDS if command}:
        assert f" {command} " in text
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
