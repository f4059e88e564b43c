"""Options of commands, declared once: a field of a dataclass is a keyword in Python and a flag on the command line.

    @dataclass(frozen=True)
    class ShrinkOptions(Options):
        tokens: int = option(12288, "Most tokens to read.", panel="Data", at_least=1)

    @takes(ShrinkOptions)
    def shrink(model: str, out: str, options: ShrinkOptions, progress: Reporter = silent) -> None: ...

    shrink("model", "out", tokens=4096)          # or options=ShrinkOptions(tokens=4096)

Classes are combined by inheritance. Files that declare options import nothing heavy, as the command line reads them all
before anything runs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Self

from gqakit.errors import UsageError, unknown_name
from gqakit.progress import reporter

REQUIRED = MISSING
"""The default of an option that must be given."""


def option(
    default: Any,
    help: str,
    *,
    panel: str = "Options",
    choices: Collection[str] = (),
    flags: Sequence[str] = (),
    expert: bool = False,
    many: bool = False,
    **bounds: float,
) -> Any:
    """A field of an options class.

    Args:
        default: its value where it is not given, the only place where this stands; or `REQUIRED`.
        help: one sentence for `--help`.
        panel: the heading that `--help` lists it under.
        choices: the values that it may have; a registry counts what is added to it later.
        flags: how the command line spells it, such as `("--output", "-o")`; made of the field's name by default.
        expert: only shown by `--help-all`.
        many: may be given several times on the command line.
        bounds: of a number: `at_least`, `above`, `at_most`, `below`.
    """
    if unknown := bounds.keys() - _BOUNDS.keys():
        raise TypeError(f"unknown bounds {sorted(unknown)}")
    metadata = {
        "help": help,
        "panel": panel,
        "choices": choices,
        "flags": flags,
        "expert": expert,
        "many": many,
    }
    return field(default=default, kw_only=True, metadata={**metadata, "bounds": bounds})


_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "at_least": (lambda value, bound: value >= bound, "at least"),
    "above": (lambda value, bound: value > bound, "above"),
    "at_most": (lambda value, bound: value <= bound, "at most"),
    "below": (lambda value, bound: value < bound, "below"),
}


@dataclass(frozen=True)
class Options:
    """Base of the options of a command. Everything that is wrong with the values is said at once.

    Raises:
        UsageError: naming every value that is none of the choices, out of bounds, or at odds with another.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            object.__setattr__(self, each.name, _converted(value, str(each.type)))
        if problems := [*self._not_allowed(), *self.problems()]:
            raise UsageError("; ".join(problems))

    def problems(self) -> Iterator[str]:
        """What is wrong with the values besides choices and bounds; names options in backquotes."""
        yield from ()

    def _not_allowed(self) -> Iterator[str]:
        for each in fields(self):
            value, metadata = getattr(self, each.name), each.metadata
            if value is None:
                continue
            choices = metadata.get("choices") or ()
            if choices and value not in choices:
                yield str(unknown_name(f"value of `{each.name}`", str(value), choices))
            for name, bound in metadata.get("bounds", {}).items():
                holds, word = _BOUNDS[name]
                try:
                    fine = math.isfinite(value) and holds(value, bound)
                except TypeError:
                    fine = False
                if not fine:
                    yield f"`{each.name}` is {value!r}, expected a number {word} {bound:g}"
                    break

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Options from keywords.

        Raises:
            UsageError: for a keyword that is no option, with near matches.
        """
        names = [each.name for each in fields(cls)]
        for name in given:
            if name not in names:
                raise unknown_name("option", name, names)
        missing = [f"`{f.name}`" for f in fields(cls) if f.default is MISSING and f.name not in given]
        if missing:
            raise UsageError(f"{', '.join(missing)} must be given")
        return cls(**given)

    def changed(self, **values: Any) -> Self:
        """The same with other values."""
        return replace(self, **values)

    def words(self, *names: str, without: Collection[str] = ()) -> list[str]:
        """Options that are not at their default, as the words of a command line.

        What came as data in memory cannot be named there and is left out.

        Args:
            names: of the options to look at; all by default. without: names of options to leave out.
        """
        found: list[str] = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value == each.default or each.name in without or (names and each.name not in names):
                continue
            yes, _, no = (each.metadata["flags"] or ["--" + each.name.replace("_", "-")])[0].partition("/")
            for single in value if isinstance(value, list | tuple) else [value]:
                if isinstance(single, bool):
                    found.append(yes if single else no or "--no-" + yes.removeprefix("--"))
                elif isinstance(single, str | int | float | Path):
                    found += [yes, str(single)]
        return found

    def part(self, kind: type[Options]) -> Any:
        """The options of one of the classes that this one combines."""
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})


def _converted(value: Any, hint: str) -> Any:
    """A value in the type of its field, where a plain one means the same: a path as text, one name for a list of one."""
    if isinstance(value, str) and "Path" in hint and "Sequence" not in hint:
        return Path(value)
    if isinstance(value, str) and "tuple[str" in hint:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list) and "tuple" in hint:
        return tuple(value)
    return value


def takes(kind: type[Options]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function with a parameter `options` of this kind be called with its fields as keywords.

    A parameter `progress` then also takes True (a bar on a terminal or in a notebook) and False; True by default.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function).parameters

        @wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            kept = {name: given.pop(name) for name in [*given] if name in own}
            if "options" in kept and given:
                raise UsageError(f"give options= or single options, not both; seen: {', '.join(given)}")
            if "progress" in own:
                kept["progress"] = reporter(kept.get("progress", True))
            return function(*args, **{"options": kept.get("options") or kind.of(given), **kept})

        mine = [p for p in own.values() if p.name not in ("options", "progress")]
        added = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if f.default is MISSING else f.default,
                annotation=f.type,
            )
            for f in fields(kind)
        ]
        if "progress" in own:
            added.append(inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=True))
        call.__signature__ = inspect.Signature([*mine, *added])  # pyright: ignore[reportAttributeAccessIssue]
        call.options = kind  # pyright: ignore[reportAttributeAccessIssue]  # what the command line reads
        return call

    return decorate
