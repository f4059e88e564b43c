"""See `tiny_fixtures`."""

from tiny_fixtures import _elsewhere, copy, model, moments

__all__ = ["_elsewhere", "copy", "model", "moments"]
