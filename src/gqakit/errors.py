"""Every error that gqakit raises on purpose, in one tree under `GqakitError`.

Each message says what is wrong, where, what was seen, what was expected and what to do.
The command line prints the message alone and exits with the class's `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GqakitError(Exception):
    """Something gqakit was asked for cannot be done. Base of the tree; exit code 1."""

    exit_code = 1


class UsageError(GqakitError):
    """Options or arguments that contradict each other or name nothing known; exit code 2."""

    exit_code = 2


class CheckpointError(GqakitError):
    """A source checkpoint is missing, incomplete, corrupt or of a kind that is not read; exit code 3."""

    exit_code = 3


class FamilyError(GqakitError):
    """The model family is not known, or config and tensors disagree about it; exit code 4."""

    exit_code = 4


class BudgetError(GqakitError):
    """No plan within the constraints meets the budget; exit code 5."""

    exit_code = 5


class PlanError(GqakitError):
    """A plan file is malformed or belongs to another model, or its moments do; exit code 6."""

    exit_code = 6


class OutputError(GqakitError):
    """The output directory cannot be used as asked; exit code 7."""

    exit_code = 7


class VerifyError(GqakitError):
    """A converted checkpoint is not what its plan promises; exit code 8."""

    exit_code = 8


class DataError(GqakitError):
    """Calibration or evaluation data is missing, empty or too short; exit code 9."""

    exit_code = 9


class MissingDependencyError(GqakitError):
    """An optional dependency is not installed; the message names the extra; exit code 10."""

    exit_code = 10


class TrainingError(GqakitError):
    """Training went wrong: a loss or a gradient is not finite; exit code 11."""

    exit_code = 11


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that no registry holds, with near matches and the full list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UsageError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
