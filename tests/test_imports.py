"""Imports run one way, and `import gqakit` is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gqakit

ROOT = Path(gqakit.__file__).parent
ROOMS = [
    *(
        "errors",
        "progress",
        "options",
        "core",
        "grouping_methods",
        "checkpoint",
        "models",
        "data",
        "calibration",
    ),
    *("evaluation", "planning", "conversion", "recovery", "exporters", "pipeline", "key_driven"),
    *("demonstration", "comparison", "cli", "__main__"),
]
"""From the ground up: a room imports from itself and from those before it."""
LEVEL = {name: level for level, name in enumerate(ROOMS)}
# Importing the package itself registers grouped families with transformers; everything else in it is lazy.
LEVEL["__init__"] = LEVEL["models"]
STRANGERS = {
    ("conversion", "planning.planner"),
    ("planning", "checkpoint.writer"),
}
"""Pairs that would be allowed by the order, but must not meet: a plan is carried out by what knows no planner."""
ONLY = {
    "core": {"core"},
    "grouping_methods": {"core", "grouping_methods", "errors"},
    "errors": set(),
    "progress": set(),
    "options": {"errors", "progress", "options"},
}

MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))}


def imports(source: str, module: str) -> Iterator[str]:
    """The modules of gqakit that a module imports, wherever in it, without the leading `gqakit.`."""
    package = ["gqakit", *module.split(".")][:-1]
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            # `from gqakit import planning` may name a module, `from gqakit.planning.plan import Plan` one in it.
            names = [f"{start}.{alias.name}" for alias in node.names] if start == "gqakit" else [start]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "gqakit" and rest != "__version__":  # a string, there before anything else is
                yield rest or "__init__"


def complaints(module: str, source: str) -> list[str]:
    room, found = module.split(".")[0], []
    for name in imports(source, module):
        target = name.split(".")[0]
        if room == "__init__":  # its imports are lazy but for what registers the families
            continue
        bad = target not in LEVEL or LEVEL[target] > LEVEL[room]
        bad = bad or (room in ONLY and target not in ONLY[room])
        bad = bad or any(room == one and f"{name}.".startswith(f"{other}.") for one, other in STRANGERS)
        if bad:
            found.append(f"{module} imports gqakit.{name}")
    return found


def test_every_module_is_in_a_room():
    assert {module.split(".")[0] for module in MODULES} == LEVEL.keys()


def test_few_modules_stand_outside_of_the_rooms():
    assert len([module for module in MODULES if "." not in module]) <= 6


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    modules = [module for module in MODULES if module.split(".")[0] == room]
    found = [c for m in modules for c in complaints(m, MODULES[m].read_text(encoding="utf-8"))]
    assert modules
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.merging.fold", "from gqakit.errors import PlanError"),
        ("core.merging.fold", "from ...grouping_methods import METHODS"),
        ("grouping_methods.optimal", "import gqakit.planning.plan"),
        ("conversion.convert", "def f():\n    from gqakit.planning.planner import make_plan"),
        ("conversion.convert", "import gqakit.planning.planner"),
        ("calibration.collect", "from gqakit.planning.planner import make_plan"),
        ("recovery.repair.fit", "from gqakit import key_driven"),
        ("errors", "from gqakit.planning.plan import Plan"),
        ("models.load", "from gqakit.nowhere import x"),
        ("core.apply", "import gqakit"),
    ],
)
def test_wrong_imports_are_seen(module, source):
    assert len(complaints(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.apply", "import torch\nfrom gqakit.core.merging import base\nfrom .merging import mean"),
        (
            "grouping_methods.base",
            "from gqakit.errors import BudgetError\nfrom gqakit.core.grouping import Partition",
        ),
        ("planning.planner", "from gqakit.planning.plan import Plan\nfrom gqakit import __version__"),
        ("conversion.convert", "from gqakit.planning.plan import Plan"),
        ("cli.plan", "from gqakit.planning.make import plan"),
    ],
)
def test_right_imports_pass(module, source):
    assert complaints(module, source) == []


def test_importing_gqakit_imports_neither_torch_nor_transformers():
    code = (
        "import sys, gqakit; print([m for m in ('torch', 'transformers', 'gqakit.core') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_what_it_says_whatever_was_imported_before():
    code = (
        "import importlib, pkgutil, gqakit\n"
        "for m in pkgutil.walk_packages(gqakit.__path__, 'gqakit.'):\n"
        "    if '__main__' not in m.name and '.vllm' not in m.name: importlib.import_module(m.name)\n"
        "import types\n"
        "print([n for n in gqakit.__all__ if isinstance(getattr(gqakit, n), types.ModuleType)])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
