"""What a command runs with when an option is left out is what the Python call of that name runs with."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import MISSING, fields
from typing import Any

import pytest
import typer
from command import gqakit

import gqakit as package
from gqakit.cli.app import app
from gqakit.options import Options

REQUIRED: dict[str, dict[str, Any]] = {
    "convert": {"kv_ratio": 0.5},
    "export": {"to": "gguf"},
    "repair": {"source": "model"},
    "vision-train": {"images": "images.npz"},
    "correlate": {"statistics": "s.safetensors"},
}
"""What cannot be left out."""
ARGUMENTS = {
    "generate": ("model", "Hello"),
    "verify": ("model", "out"),
    "methods": (),
    "families": (),
    "demo": (),
}
OUTPUT = ("calibrate", "compare", "convert", "export", "repair", "sample", "uptrain", "vision-train")


class Ran(Exception):  # noqa: N818  # control flow: the call was reached
    """Carries what a command called."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


def python_call(name: str) -> Any:
    """The Python call of a command's name."""
    return getattr(package, name.replace("-", "_"))


def with_options() -> dict[str, type[Options]]:
    """Every command of the app whose Python call takes an options class."""
    names = getattr(typer.main.get_command(app), "commands", {})
    found = {name: getattr(python_call(name), "options", None) for name in names}
    return {name: kind for name, kind in found.items() if kind is not None}


KINDS = with_options()


def options_of(name: str, monkeypatch: pytest.MonkeyPatch, *more: Any) -> Options:
    """The options that a command line comes to, seen where its Python function would begin."""
    call = python_call(name)
    module = importlib.import_module(call.__module__)

    def stub(*args: Any, **given: Any) -> None:
        raise Ran(given | {"positional": args})

    target = "explore" if name == "plan" else call.__name__
    monkeypatch.setattr(module, target, stub)
    line = [name, *ARGUMENTS.get(name, ("model",)), *(("-o", "made") if name in OUTPUT else ())]
    try:
        said = gqakit(*line, *more).err
    except Ran as ran:
        given = [*ran.arguments["positional"], *ran.arguments.values()]
        (options,) = [value for value in given if isinstance(value, Options)]
        return options
    raise AssertionError(f"`gqakit {' '.join(map(str, line))}` did not come to {target}: {said}")


def test_every_python_call_with_options_has_a_command() -> None:
    """Of those that are on the command line."""
    assert {
        "calibrate",
        "convert",
        "evaluate",
        "generate",
        "inspect",
        "plan",
        "verify",
    } <= KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_a_command_without_options_runs_with_the_defaults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    least = REQUIRED.get(name, {})
    flags = [part for key, value in least.items() for part in (f"--{key.replace('_', '-')}", value)]
    seen = options_of(name, monkeypatch, *flags)
    assert type(seen) is KINDS[name]
    assert seen == KINDS[name](**least)


@pytest.mark.parametrize("name", KINDS)
def test_the_defaults_that_help_shows_and_the_signature_names_are_the_same(name: str) -> None:
    group = typer.main.get_command(app)
    command = getattr(group, "commands", {})[name]
    command = getattr(command, "commands", {}).get("make", command)
    shown = {parameter.name: parameter.default for parameter in command.params}
    signature = inspect.signature(python_call(name)).parameters
    for each in fields(KINDS[name]):
        assert each.name in shown, f"{each.name} is no option of the command"
        if shown[each.name] is not None:
            assert shown[each.name] == each.default
        if each.default is MISSING:
            assert signature[each.name].default is inspect.Parameter.empty
        else:
            assert signature[each.name].default == each.default


def test_an_option_that_is_given_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    more = (
        "--kv-heads",
        2,
        "--text",
        "a.txt",
        "--text",
        "b.txt",
        "--stacks",
        "decoder,cross",
        "--no-evaluate",
    )
    seen: Any = options_of("convert", monkeypatch, *more, "--repair", "--asymmetric", "--method", "asymgqa")
    assert (seen.kv_heads, seen.text, seen.stacks) == (2, ["a.txt", "b.txt"], ("decoder", "cross"))
    assert (seen.evaluate, seen.repair, seen.symmetric) == (False, True, False)
