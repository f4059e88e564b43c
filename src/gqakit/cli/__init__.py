"""The command line: one thin file per command; what they do is in the domains, imported when a command runs."""

from __future__ import annotations

import sys
from typing import Any

from gqakit.errors import GqakitError


def main() -> None:
    """Entry point. What goes wrong becomes one line on standard error and an exit code; see `gqakit.errors`."""
    import typer

    from gqakit.cli.app import app
    from gqakit.cli.command import with_flags

    wrong_usage: Any = typer.BadParameter.__mro__[1]  # the base of all that is wrong about a command line
    try:
        code = app(standalone_mode=False)
    except wrong_usage as error:
        message = str(error.format_message()).replace("Value error, ", "")
        _fail(message, 2) if message.strip() else sys.exit(
            2
        )  # without arguments the help was printed already
    except GqakitError as error:
        _fail(with_flags(str(error)), error.exit_code)
    except typer.Abort:
        sys.exit(130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"gqakit: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
