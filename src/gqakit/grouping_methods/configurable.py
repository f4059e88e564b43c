"""Things that are asked for by name and have options: grouping methods and allocations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from gqakit.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Configurable:
    """A frozen dataclass whose fields are its options, checked in `__post_init__` (ValueError)."""

    kind: ClassVar[str]
    name: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """The options, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def configured(self, options: Mapping[str, Any]) -> Self:
        """The same with some options changed.

        Raises:
            UsageError: for an option that it does not have or a value out of range.
        """
        known = self.options()
        for name in options:
            if name not in known:
                if not known:
                    raise UsageError(
                        f"{self.kind} {self.name} has no options; seen: {name} = {options[name]!r}"
                    )
                raise unknown_name(f"option of {self.kind} {self.name}", name, known)
        try:
            return replace(self, **options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.kind} {self.name}: {error}") from error
