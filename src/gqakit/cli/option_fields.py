"""Options of a command taken from a dataclass: one field, one option.

Help and panel are in the field's type, where that is an annotated option, or in the field's metadata.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer


def _option(hint: Any, metadata: Mapping[str, Any]) -> Any:
    if hasattr(hint, "__metadata__"):
        return hint
    names = metadata.get("flags", ())
    if "flags" in metadata and not names and hint is bool:
        names = ("--" + metadata["name"].replace("_", "-"),)
    return Annotated[hint, typer.Option(*names, help=metadata["help"], rich_help_panel=metadata["panel"])]


def takes_fields(
    kind: type, argument: str = "options"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every field of `kind` as an option of its own; it gets them as one argument.

    A message of `kind` about its values names the options, so it should spell them `--like-this`.
    """
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=_option(hints[field.name], {**field.metadata, "name": field.name}),
        )
        for field in fields(kind)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != argument]
        required = [p for p in kept if p.default is inspect.Parameter.empty]
        parameters = [*required, *added, *(p for p in kept if p not in required)]

        @wraps(command)
        def expanded(**values: Any) -> None:
            chosen = kind(**{name: values.pop(name) for name in names})
            command(**values, **{argument: chosen})

        expanded.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        expanded.__annotations__ = {p.name: p.annotation for p in parameters}
        del expanded.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
        return expanded

    return decorate
