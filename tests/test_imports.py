"""Imports run one way, and `import gqakit` is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gqakit

ROOT = Path(gqakit.__file__).parent
ANYWHERE = {"errors", "version", "progress", "configurable"}
LEVELS = [
    {"core"},
    {"families", "checkpoint", "nsga", "engines"},
    {"methods", "allocation", "calibration", "plan", "runtime"},
    {"choices", "options", "planner", "convert", "inspection", "catalogue", "family_table"},
    {"report", "evaluation", "training", "export", "verify", "zoo"},
    {"api"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# The package itself registers the runtime; `python -m gqakit` is the command line.
LEVEL |= {"__init__": LEVEL["runtime"], "__main__": LEVEL["cli"]}
STRANGERS = {("planner", "convert"), ("convert", "planner")}
ONLY = {"core": {"core"}, "nsga": {"core"}, "methods": {"core", "methods", "errors", "configurable", "nsga"}}

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
            # `from gqakit import plan` names a module, `from gqakit.planning.plan import Plan` one in it.
            names = [f"{start}.{alias.name}" for alias in node.names] if start == "gqakit" else [start]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "gqakit":
                yield rest or "__init__"


def part_of(module: str) -> str:
    part = module.split(".")[0]
    return part if part in LEVEL or part in ANYWHERE else f"unknown part {part!r}"


def complaints(module: str, source: str) -> list[str]:
    part, found = part_of(module), []
    for name in imports(source, module):
        target = part_of(name)
        if part in ONLY:
            bad = target not in ONLY[part]
        elif part in ANYWHERE:
            bad = target not in ANYWHERE
        elif target in ANYWHERE:
            bad = False
        else:
            bad = target not in LEVEL or LEVEL[target] > LEVEL[part] or (part, target) in STRANGERS
        if bad:
            found.append(f"{module} imports gqakit.{name}")
    return found


def test_every_module_has_a_level():
    assert {part_of(m) for m in MODULES} <= LEVEL.keys() | ANYWHERE


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    assert complaints(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.fold", "from gqakit.errors import PlanError"),
        ("core.fold", "from ..methods import METHODS"),
        ("core.merging.fold", "from ...plan import Plan"),
        ("methods.qcqa", "import gqakit.planning.plan"),
        ("planner", "from gqakit.conversion.convert import convert_checkpoint"),
        ("convert", "def f():\n    from gqakit import planner"),
        ("calibration.text", "from gqakit.planning.planner import make_plan"),
        ("plan", "from gqakit.models.running import load_model"),
        ("errors", "from gqakit.planning.plan import Plan"),
        ("runtime.load", "from gqakit.nowhere import x"),
        ("families.spec", "import gqakit"),
    ],
)
def test_wrong_imports_are_seen(module, source):
    assert len(complaints(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.fold", "import torch\nfrom gqakit.core.merging import base\nfrom .merging import mean"),
        ("methods.qcqa", "from gqakit.errors import BudgetError\nfrom gqakit.core.grouping import Partition"),
        ("planner", "from gqakit.planning.plan import Plan\nfrom gqakit.version import __version__"),
        ("convert", "from gqakit.runtime import shipped_code"),
        ("cli.plan", "from gqakit.api import plan"),
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
