"""`gqakit verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from gqakit.cli.command import Model, command
from gqakit.cli.console import Screen
from gqakit.conversion.options import VerifyOptions
from gqakit.errors import VerifyError


@command(VerifyOptions, examples=("verify MODEL CONVERTED", "verify MODEL CONVERTED --text held-out.txt -v"))
def verify(
    screen: Screen,
    model: Model,
    converted: Annotated[str, typer.Argument(help="What was made of it.", show_default=False)],
    options: VerifyOptions,
) -> None:
    """Check that a converted checkpoint is what its plan promises; exit code 8 if it is not.

    "ok" and "FAILED" are checks with a threshold; "info" has none.
    """
    from gqakit.conversion.verify import verify

    found = verify(model, converted, options=options, progress=screen.progress)
    if screen.as_json:
        screen.json({"passed": found.passed, "checks": found.checks, "layer_errors": found.layer_errors})
    else:
        word = {True: "ok", False: "FAILED", None: "info"}
        rows = [(word[check.passed], check.name, check.detail) for check in found.checks]
        screen.table(f"{converted} against {model}", ("", "check", "seen"), rows)
        if found.layer_errors and screen.verbose:
            errors = [(str(layer), f"{error:.4g}") for layer, error in enumerate(found.layer_errors)]
            screen.table("Relative error of each layer's attention output", ("layer", "error"), errors)
    if not found.passed:
        failed = ", ".join(check.name for check in found.checks if check.passed is False)
        raise VerifyError(f"{converted} is not what its plan promises: {failed}")
