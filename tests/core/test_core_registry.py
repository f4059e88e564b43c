"""Names without imports, values on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gqakit.core.merging import RULES
from gqakit.core.registry import Registry
from gqakit.grouping_methods import METHODS
from gqakit.planning.allocation import ALLOCATIONS

REGISTRIES = {"methods": METHODS, "rules": RULES, "allocations": ALLOCATIONS}


def test_names_cost_no_heavy_import() -> None:
    script = (
        "import sys\n"
        "from gqakit.core.merging import RULES\n"
        "from gqakit.grouping_methods import METHODS\n"
        "from gqakit.planning.allocation import ALLOCATIONS\n"
        "assert 'fold' in RULES and 'qcqa' in METHODS and 'nothing' not in ALLOCATIONS\n"
        "print(len(METHODS), *METHODS, *RULES, *ALLOCATIONS)\n"
        "heavy = {'torch', 'numpy', 'scipy', 'transformers', 'pymoo', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(len(METHODS)), *METHODS, *RULES, *ALLOCATIONS]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_entry_is_registered_under_its_own_name(kind: str) -> None:
    assert [entry.name for entry in REGISTRIES[kind].values()] == list(REGISTRIES[kind])


def test_a_value_is_made_once_and_others_may_be_added_and_removed() -> None:
    registry: Registry[object] = Registry({"list": "builtins:list", "dict": "builtins:dict"})
    assert registry["list"] is registry["list"]
    assert registry["list"] == []
    assert "set" not in registry
    with pytest.raises(KeyError):
        registry["set"]
    registry["set"] = {1}
    registry["dict"] = {2: 3}
    assert (list(registry), len(registry)) == (["list", "dict", "set"], 3)
    assert (registry["set"], registry["dict"]) == ({1}, {2: 3})
    del registry["set"]
    assert "set" not in registry
    assert len(registry) == 2
    with pytest.raises(KeyError):
        registry["set"]
