"""The model code that goes into every grouped checkpoint, so that it loads without gqakit installed.

Here its modules have plain names. In a checkpoint, beside other files, their names end in `_gqakit`.
"""

from __future__ import annotations

import re
from pathlib import Path

from gqakit.models.architectures import auto_classes
from gqakit.models.families.base import Family
from gqakit.models.remote_code.forward import FORWARDS

SUFFIX = "_gqakit"
_RELATIVE_IMPORT = re.compile(r"^(\s*from \.)\.?(\w+)( import )", re.MULTILINE)
_HERE = Path(__file__).with_name("remote_code")
_OF_ALL = """

def forward_of(model_type: str) -> Any:
    return forward
"""
_OF_NONE = '''"""This family's own attention runs any number of KV heads."""


def forward_of(model_type: str) -> None:
    """Nothing takes its place."""
'''


def shipped_code(model_type: str) -> dict[str, bytes]:
    """The files to write beside `config.json`, name to content; `auto_map` points into them.

    Args:
        model_type: of the family, whose forward pass is the only one that goes along.
    """
    code = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_HERE.glob("[a-z]*.py"))}
    needed = FORWARDS.get(model_type)
    code["forward"] = _OF_NONE
    if needed is not None:
        code["forward"] = (_HERE / "forwards" / f"{needed}.py").read_text(encoding="utf-8") + _OF_ALL
    return {
        f"{name}{SUFFIX}.py": _RELATIVE_IMPORT.sub(rf"\1\2{SUFFIX}\3", content).encode()
        for name, content in code.items()
    }


def auto_map(family: Family, architecture: str) -> dict[str, str]:
    """Where transformers' auto classes find a grouped checkpoint's classes in the shipped files.

    Args:
        family: its own. architecture: the class that the checkpoint is, whether the family lists it or not.
    """
    classes = auto_classes(family, architecture)
    models = {auto: f"modeling{SUFFIX}.Gqakit{name}" for auto, name in classes.items()}
    return {"AutoConfig": f"configuration{SUFFIX}.Gqakit{family.config}", **models}
