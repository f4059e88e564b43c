"""The command line: one thin file per command; what they do is in the domains, imported when a command runs."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
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
    except Exception as error:
        said = _of_transformers(error)
        if said is None or {"-v", "--verbose"} & {*sys.argv}:
            raise
        _fail(said, 3)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _of_transformers(error: Exception) -> str | None:
    """What to say of an error in transformers' own code, which takes configs that it cannot run; None of any other error."""
    transformers: Any = sys.modules.get("transformers")
    if transformers is None:
        return None
    ours, theirs = Path(__file__).parents[1], Path(transformers.__file__).parent
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    inside = frames[max(i for i, file in enumerate(frames) if file.is_relative_to(ours)) + 1 :]
    where = next((file for file in reversed(inside) if file.is_relative_to(theirs)), None)
    if where is None:
        return None
    return (
        f"transformers {transformers.__version__} does not run this model: {where.name}: {type(error).__name__}: "
        f"{str(error)[:300]}. Look for what its code cannot compute with in config.json; --verbose shows where it was, for "
        "a report if it runs without gqakit"
    )


def _fail(message: str, code: int) -> None:
    print(f"gqakit: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
