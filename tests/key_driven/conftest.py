"""Tiny models and the command line, as in the end-to-end tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_fixtures import _elsewhere, copy, model, moments

__all__ = ["_elsewhere", "copy", "model", "moments"]
