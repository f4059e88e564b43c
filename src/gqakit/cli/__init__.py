"""The command line: one thin file per command; what they do is in the domains, imported when a command runs."""

from __future__ import annotations

import logging
import sys

from gqakit.errors import GqakitError


def main() -> None:
    """Entry point. A `GqakitError` becomes its message and its exit code; see `gqakit.errors`."""
    from gqakit.cli.app import app
    from gqakit.cli.command import with_flags

    try:
        app()
    except GqakitError as error:
        print(f"gqakit: error: {with_flags(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        logging.shutdown()
