"""Puts the page together: one HTML file with its data, its styles and the library that draws, and no network."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from gqakit.checkpoint.atomic import write_bytes
from gqakit.evaluation.page import charts
from gqakit.evaluation.page.content import Page


def write_page(page: Page, path: Path) -> None:
    """Write the page, atomically.

    Raises:
        MissingDependencyError: without the `page` extra.
        OutputError: when the file cannot be written.
    """
    write_bytes(path, html(page).encode())


def html(page: Page) -> str:
    """The page as text."""
    points = (page.source, *page.points)
    ways, caches = (
        list(dict.fromkeys(each)) for each in zip(*((p.way, p.cache) for p in points), strict=True)
    )
    drawn = {
        "quality": charts.quality(ways, [cache or charts.FULL for cache in caches]),
        "groups": charts.groups(),
        "kept": charts.kept(),
        "errors": charts.errors(),
        "alike": charts.alike(),
        "tree": charts.tree(),
    }
    data = json.dumps(_finite({**asdict(page), "charts": drawn}), allow_nan=False, separators=(",", ":"))
    parts = {
        "title": _escaped(page.title),
        "style": _asset("page.css"),
        "data": data.replace("<", "\\u003c"),  # no name or text can end the script element that holds it
        "library": _library().replace("</script", "<\\/script"),
        "script": _asset("page.js"),
    }
    head, *rest = _asset("page.html").split("{{")
    pieces = [head]
    for piece in rest:
        name, _, after = piece.partition("}}")
        pieces += [parts[name], after]
    return "".join(pieces)


def _asset(name: str) -> str:
    return files(__package__ or "").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    charts.altair()
    import vl_convert

    return vl_convert.javascript_bundle(snippet=None)  # pyright: ignore[reportArgumentType]  # the stub forgets the default


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _finite(value: Any) -> Any:
    """Values as JSON has them: no infinity, which a perplexity can be."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
