"""How a command is made: its options are the fields of an options class, its help begins with examples."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import ArgumentInfo

from gqakit.cli.console import Screen
from gqakit.options import Options

Model = Annotated[
    str,
    typer.Argument(help="Directory of a checkpoint, or a name on the Hugging Face hub.", show_default=False),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="The directory to write.", rich_help_panel="Output", show_default=False
    ),
]

EXPERT = "--help-all"
LONGEST_KIND = 24
"""Choices that take more characters stand behind the help, or the column of names would be cut at 80 columns."""
_PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "Path": Path}
_SPELLED: dict[str, str] = {"out": "--output"}
"""How the command line spells the options that are not simply named after their field."""


def command(
    kind: type[Options] | None, *, examples: Sequence[str] = (), resumes: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that takes a `Screen`, arguments, and `options` of a class.

    Args:
        kind: the class; None for a command without options of its own.
        examples: command lines without the leading `gqakit `, shown first in the help.
        resumes: what becomes of the work when Ctrl-C interrupts it.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, p in inspect.signature(function, eval_str=True).parameters.items()
            if name not in ("screen", "options")
        ]
        added = [_parameter(each) for each in _in_order(kind)] if kind else []
        arguments = [p for p in own if isinstance(p.annotation.__metadata__[0], ArgumentInfo)]
        places = [p for p in own if p not in arguments]  # where results go: last, in the order of work
        parameters = [*arguments, *added, *places, *_shared()]

        def run(**values: Any) -> None:
            screen = Screen(values.pop("as_json"), values.pop("quiet"), values.pop("verbose"))
            values.pop("help_all")
            given = {each.name: values.pop(each.name) for each in fields(kind)} if kind else {}
            values |= {"options": kind(**_given(given))} if kind else {}
            try:
                function(screen, **values)
            except KeyboardInterrupt:
                screen.remark(f"interrupted{'; ' if resumes else ''}{resumes}")
                raise typer.Exit(130) from None

        run.__name__, run.__doc__ = function.__name__, _help(function, examples)
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _help(function: Callable[..., None], examples: Sequence[str]) -> str:
    """The text of `--help`: examples, then what the command does. `\\b` keeps lines apart."""
    text = inspect.getdoc(function) or ""
    if not examples:
        return text
    return "\n\n".join(["\b\n" + "\n".join(f"$ gqakit {line}" for line in examples), text])


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without the options that were left out: the options class has their defaults."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def _in_order(kind: type[Options]) -> list[Field[Any]]:
    """The fields in the order of the classes that this one combines, its own last: the order of work."""
    own, *bases = (cls for cls in kind.__mro__ if cls is not object)
    place = {name: i for i, cls in enumerate([*bases, own]) for name in inspect.get_annotations(cls)}
    return sorted(fields(kind), key=lambda each: place[each.name])


def _parameter(each: Field[Any]) -> inspect.Parameter:
    """A field as an option of the command line."""
    metadata, hint = each.metadata, str(each.type)
    plain = hint.removesuffix(" | None")
    kind: Any = _PLAIN.get(plain, str)
    default = inspect.Parameter.empty if each.default is MISSING else each.default
    if metadata["many"]:
        kind, default = list[str], None
    elif plain.startswith("tuple"):
        default = None
    if default is None:
        kind = kind | None
    flags = list(metadata["flags"])
    if flags:
        _SPELLED[each.name] = flags[0].partition("/")[0]
    elif default is False:  # a switch that is only ever turned on
        flags = [flag(each.name)]
    shown = " | ".join(metadata["choices"])
    named = f" One of {', '.join(metadata['choices'])}." if len(shown) > LONGEST_KIND else ""
    option = typer.Option(
        *flags,
        help=f"{metadata['help']}{named}".replace("[", "\\["),
        rich_help_panel=metadata["panel"],
        metavar=None if named else shown or None,
        autocompletion=_completing(metadata["choices"]),
        hidden=metadata["expert"] and EXPERT not in sys.argv,
        show_default=default not in (None, False, inspect.Parameter.empty),
    )
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _completing(choices: Collection[str]) -> Callable[[str], list[str]] | None:
    """What a shell completes a value with. The options class refuses a wrong one, with near matches."""
    if not choices:
        return None
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def _show_all(context: typer.Context, shown: bool) -> None:
    if shown:
        print(context.get_help())
        raise typer.Exit


def _shared() -> list[inspect.Parameter]:
    """What every command takes."""

    def switch(name: str, *flags: str, help: str, **how: Any) -> inspect.Parameter:
        option = typer.Option(*flags, help=help, rich_help_panel="Screen", **how)
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
        )

    return [
        switch("as_json", "--json", help="Print JSON, and nothing else, on standard output."),
        switch("quiet", "--quiet", "-q", help="No progress, no remarks."),
        switch("verbose", "--verbose", "-v", help="Log what is done."),
        switch(
            "help_all", EXPERT, help="Show the options of searches too.", callback=_show_all, is_eager=True
        ),
    ]


def flag(name: str) -> str:
    """A field as the command line spells it."""
    return _SPELLED.get(name, "--" + name.replace("_", "-"))


def with_flags(message: str) -> str:
    """A message of the library, whose backquoted options become flags: `kv_ratio` is --kv-ratio."""

    def spelled(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if value in (None, "True"):
            return flag(name)
        return "--no-" + flag(name).removeprefix("--") if value == "False" else f"{flag(name)} {value}"

    return re.sub(r"`([a-z]+(?:_[a-z]+)*)(?:=([^`\s]*))?`", spelled, message)
