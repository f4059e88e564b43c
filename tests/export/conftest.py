"""The tiny models and the runner live beside the end-to-end tests; this makes them importable here."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "e2e"), str(Path(__file__).parent)]

from export_fixtures import grouped  # noqa: E402
from tiny_fixtures import _elsewhere, copy, model  # noqa: E402

__all__ = ["_elsewhere", "copy", "grouped", "model"]
