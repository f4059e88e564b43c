"""A mapping from names to things that are imported on first use, so that the names alone cost no import of torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(MutableMapping[str, T], Generic[T]):
    """What can be asked for by name: iteration, `len`, `in` need the names alone, a value imports its module.

    A further entry is set as in any mapping, `METHODS["mine"] = Mine()`.

    Args:
        places: for each name, in the order that lists show, `"module:Class"`; the value is an instance of the class
            without arguments, made once.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._values: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._values:
            module, _, kind = self._places[name].partition(":")
            self._values[name] = getattr(importlib.import_module(module), kind)()
        return self._values[name]

    def __setitem__(self, name: str, value: T) -> None:
        self._places.setdefault(name, "")
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        del self._places[name]
        self._values.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
