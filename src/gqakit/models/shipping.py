"""The model code that goes into every grouped checkpoint, so that it loads without gqakit installed.

Here its modules have plain names. In a checkpoint, beside other files, their names end in `_gqakit`.
"""

from __future__ import annotations

import re
from pathlib import Path

from gqakit.models.architectures import auto_classes
from gqakit.models.families.base import Family

SUFFIX = "_gqakit"
_RELATIVE_IMPORT = re.compile(r"^(\s*from \.)(\w+)( import )", re.MULTILINE)


def shipped_code() -> dict[str, bytes]:
    """The files to write beside `config.json`, name to content; `auto_map` points into them."""
    modules = sorted(Path(__file__).with_name("remote_code").glob("[a-z]*.py"))
    return {
        f"{module.stem}{SUFFIX}.py": _RELATIVE_IMPORT.sub(
            rf"\1\2{SUFFIX}\3", module.read_text(encoding="utf-8")
        ).encode()
        for module in modules
    }


def auto_map(family: Family, architecture: str) -> dict[str, str]:
    """Where transformers' auto classes find a grouped checkpoint's classes in the shipped files.

    Args:
        family: its own. architecture: the class that the checkpoint is, whether the family lists it or not.
    """
    classes = auto_classes(family, architecture)
    models = {auto: f"modeling{SUFFIX}.Gqakit{name}" for auto, name in classes.items()}
    return {"AutoConfig": f"configuration{SUFFIX}.Gqakit{family.config}", **models}
