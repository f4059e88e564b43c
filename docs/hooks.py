"""What the site fills in by itself: a table of every command's options, from where they are declared."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

MARK = "<!-- options of every command -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARK, options()) if MARK in markdown else markdown


def options() -> str:
    """A section per command: its options in the order of work."""
    import gqakit
    from gqakit.cli.command import _in_order, flag

    parts: list[str] = []
    for name in sorted(gqakit.__all__):
        kind = getattr(getattr(gqakit, name), "options", None)
        if kind is None:
            continue
        parts += [
            f"## {name.replace('_', '-')}",
            "",
            "| keyword | flag | default | what |",
            "| --- | --- | --- | --- |",
        ]
        for each in _in_order(kind):
            default = "required" if each.default is MISSING else _shown(each.default)
            chosen = ", ".join(f"`{choice}`" for choice in each.metadata["choices"])
            what = each.metadata["help"] + (f" One of {chosen}." if chosen else "")
            flags = each.metadata["flags"] or (flag(each.name),)
            parts.append(f"| `{each.name}` | `{flags[0]}` | {default} | {what.replace('|', '/')} |")
        parts.append("")
    return "\n".join(parts)


def _shown(value: Any) -> str:
    return "" if value in (None, (), "") else f"`{value}`"
