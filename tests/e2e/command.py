"""Run the command line in this process, as `gqakit ARGS…` would run."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tiny_models import hashes

from gqakit.cli import main

# Few tokens: enough for a tiny model, a fraction of a second to run.
SMALL = ("--tokens", "256", "--window", "32")
QUICK = (*SMALL, "--no-evaluate")  # for `convert`


@dataclass(frozen=True)
class Ran:
    """Exit code and both streams."""

    code: int
    out: str
    err: str


def gqakit(*args: Any) -> Ran:
    """Run one command; anything but `SystemExit` (a traceback for the user) passes through and fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    argv = ["gqakit", *map(str, args)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


def succeeds(*args: Any) -> Ran:
    """Run a command that must exit with 0."""
    ran = gqakit(*args)
    assert ran.code == 0, ran.err + ran.out
    return ran


def refused(code: int, *args: Any, says: tuple[str, ...] = ()) -> str:
    """Run a command that must be refused with this code and one clear message; returns the message.

    Whatever lies in the working directory must be as it was, and nothing new beside it.
    """
    before = hashes(Path.cwd())
    ran = gqakit(*args)
    assert ran.code == code, f"exit {ran.code}, expected {code}\n{ran.err}{ran.out}"
    assert "Traceback" not in ran.err
    errors = [line for line in ran.err.splitlines() if line.startswith("gqakit: error: ")]
    assert len(errors) == 1, ran.err
    assert ran.err.count("gqakit: error:") == 1
    assert ran.err.splitlines()[-1] == errors[0], (
        f"the message is not the last word, or has several lines:\n{ran.err}"
    )
    for part in says:
        assert str(part) in errors[0], f"{part!r} is not in: {errors[0]}"
    assert hashes(Path.cwd()) == before, "files appeared, went or changed"
    return errors[0]
