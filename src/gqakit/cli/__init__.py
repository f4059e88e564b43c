"""The command line: one file a command, heavy imports only inside the functions that need them."""

from __future__ import annotations

import sys

from gqakit.errors import GqakitError


def main() -> None:
    """Entry point. A `GqakitError` becomes its message and its exit code; see `gqakit.errors`."""
    from gqakit.cli.app import app

    try:
        app()
    except GqakitError as error:
        print(f"gqakit: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
