"""The ways of converting that are compared: a name, and the options of `convert` that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gqakit.core.merging import RULES
from gqakit.errors import unknown_name
from gqakit.grouping_methods import METHODS


@dataclass(frozen=True)
class Way:
    """How a checkpoint is made.

    Attributes:
        name: what tables call it.
        options: of `convert`, besides the budget and the data.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def merge(self) -> str:
        """The merge rule."""
        return self.options["merge"]

    @property
    def flags(self) -> str:
        """The options as the command line has them."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.options.items())


NAMED: dict[str, tuple[str, str]] = {
    "neighbour-mean": ("neighbour", "mean"),
    "qcqa": ("qcqa", "mean"),
    "asymgqa": ("asymgqa", "mean"),
    "aligned": ("optimal", "aligned"),
    "fold": ("optimal", "fold"),
}
"""Grouping method and merge rule of the ways that have a name of their own, as published."""


def way(name: str, **shared: Any) -> Way:
    """A way by its name, or by `METHOD+MERGE` for any other pair of a grouping method and a merge rule.

    Args:
        name: such as "fold" or "asymgqa+fold". shared: options that all ways of a comparison have.

    Raises:
        UsageError: when there is none of this name.
    """
    if name in NAMED:
        method, merge = NAMED[name]
    else:
        method, _, merge = name.partition("+")
        if not merge:
            raise unknown_name("way", name, (*NAMED, "METHOD+MERGE"))
        if method not in METHODS:
            raise unknown_name("grouping method", method, METHODS)
        if merge not in RULES:
            raise unknown_name("merge rule", merge, RULES)
    return Way(name, {"method": method, "merge": merge, **shared})
