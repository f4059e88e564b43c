"""`gqakit verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.console import Screen
from gqakit.cli.options import Json, Model, Quiet, Text, Verbose
from gqakit.errors import VerifyError


def command(
    model: Model,
    converted: Annotated[str, typer.Argument(help="What was made of it.", show_default=False)],
    text: Text = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check that a converted checkpoint is what its plan promises; exit code 8 if it is not."""
    screen = Screen(as_json=as_json, quiet=quiet, verbose=verbose)
    from gqakit.conversion.verify import verify

    found = verify(model, converted, text=text or None, progress=screen.progress)
    if as_json:
        screen.json({"passed": found.passed, "checks": found.checks, "layer_errors": found.layer_errors})
    else:
        rows = [("ok" if check.passed else "FAILED", check.name, check.detail) for check in found.checks]
        screen.table(f"{converted} against {model}", ("", "check", "seen"), rows)
        if found.layer_errors and verbose:
            errors = [(str(layer), f"{error:.4g}") for layer, error in enumerate(found.layer_errors)]
            screen.table("Relative error of each layer's attention output", ("layer", "error"), errors)
    if not found.passed:
        failed = ", ".join(check.name for check in found.checks if not check.passed)
        raise VerifyError(f"{converted} is not what its plan promises: {failed}")
