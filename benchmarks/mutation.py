"""Mutation testing of the pure maths: how many small faults in core/ and grouping_methods/ do their tests notice?

    make mutation                                       # 60 mutants, seed 0
    python benchmarks/mutation.py --mutants 300 --seed 1

mutmut 3 (`pip install mutmut`) makes the mutants and runs, for each, the tests that reach the changed function. There are
thousands, so a seeded sample is run. Prints the share that is killed and what survived.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGURATION = """
[tool.mutmut]
source_paths = ["src/gqakit/core", "src/gqakit/grouping_methods"]
also_copy = ["src/gqakit", "tests", "benchmarks", "pyproject.toml"]
pytest_add_cli_args = ["--hypothesis-profile=mutation", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = ["tests/core", "tests/methods"]
timeout_multiplier = 5.0
timeout_constant = 30.0
"""
SURVIVED = (0, 5, 33)
"""mutmut's exit codes for tests that pass and for functions that no test reaches. The rest is killed, a timeout too: the
suite would not pass."""
CREATE = "from mutmut.__main__ import create_mutants; create_mutants(1)"


def main() -> None:
    """Sample, run, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=60, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "out" / "mutation")
    options = parser.parse_args()
    work: Path = options.work
    if not work.exists():
        for part in ("src", "tests", "benchmarks"):
            shutil.copytree(
                ROOT / part, work / part, ignore=shutil.ignore_patterns("out", "raw", "__pycache__")
            )
        (work / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + CONFIGURATION)
    subprocess.run([sys.executable, "-c", CREATE], cwd=work, check=True)
    every = sorted(results(work))
    drawn = sorted(random.Random(options.seed).sample(every, min(options.mutants, len(every))))
    run = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *drawn]
    subprocess.run(run, cwd=work, check=True)
    codes = results(work)
    ran = [name for name in drawn if codes[name] is not None]
    survived = [name for name in ran if codes[name] in SURVIVED]
    print(f"\n{len(ran)} of {len(every)} mutants run, seed {options.seed}: {len(ran) - len(survived)} killed")
    for name in survived:
        subprocess.run([sys.executable, "-m", "mutmut", "show", name], cwd=work, check=False)


def results(work: Path) -> dict[str, int | None]:
    """The exit code of every mutant, None where it has not run."""
    found: dict[str, int | None] = {}
    for path in (work / "mutants").rglob("*.meta"):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


if __name__ == "__main__":
    main()
