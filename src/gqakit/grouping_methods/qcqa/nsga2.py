"""NSGA-II over rows of integers with two objectives, a whole number and a loss; pymoo is imported when a search starts."""

from __future__ import annotations

import random

from gqakit.grouping_methods.qcqa.evolution import (
    Archive,
    Evolution,
    Found,
    Operators,
    Rows,
    check_pymoo,
    distinct,
)


def evolve(start: Rows, operators: Operators, options: Evolution, *, seed: str) -> list[Found]:
    """Breed from a first population; the best row met for every size, smallest first, dominated or not.

    At most `population × generations` chromosomes are scored besides the first ones; fewer where mating finds no
    new ones, as with few heads.

    Args:
        start: valid rows in the one form that `operators.repair` gives them. With more than `population` of them the
            best survive the first generation.
        operators, options: see there.
        seed: the only source of randomness.

    Raises:
        MissingDependencyError: without pymoo.
    """
    archive = Archive(operators)
    start = distinct(start)
    if len(start) < 2:
        archive.score(start)
        return archive.found()
    check_pymoo()
    from pymoo.config import Config

    Config.warnings["not_compiled"] = False  # or pymoo prints an advertisement for its compiled modules
    from gqakit.grouping_methods.qcqa.pymoo_search import run

    run(start, operators, options, archive, random.Random(seed).getrandbits(64))
    return archive.found()
