"""gqakit: trained attention checkpoints with fewer key/value heads.

One function for each command, loaded on first use, and `load` for a converted checkpoint. After `import gqakit`
transformers' own `Auto*.from_pretrained` loads `grouped` checkpoints too. Importing this imports neither torch
nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gqakit import errors as errors
from gqakit.models.load import load
from gqakit.models.registration import register_lazily

if TYPE_CHECKING:
    from gqakit.calibration.calibrate import calibrate
    from gqakit.comparison.compare import compare
    from gqakit.conversion.verify import verify
    from gqakit.demonstration.demo import demo
    from gqakit.evaluation.bench import bench
    from gqakit.evaluation.evaluate import evaluate
    from gqakit.exporters.export import export
    from gqakit.key_driven.train import vision_train
    from gqakit.models.families.table import families
    from gqakit.models.generate import generate
    from gqakit.models.inspection import inspect
    from gqakit.models.sample import sample
    from gqakit.pipeline import convert
    from gqakit.planning.catalogue import methods
    from gqakit.planning.correlation.correlate import correlate
    from gqakit.planning.make import plan
    from gqakit.recovery.distil.uptrain import uptrain
    from gqakit.recovery.repair.repair import repair

__version__ = "0.1.0"

_PUBLIC = {
    "bench": "evaluation.bench",
    "calibrate": "calibration.calibrate",
    "compare": "comparison.compare",
    "convert": "pipeline",
    "correlate": "planning.correlation.correlate",
    "demo": "demonstration.demo",
    "evaluate": "evaluation.evaluate",
    "export": "exporters.export",
    "families": "models.families.table",
    "generate": "models.generate",
    "inspect": "models.inspection",
    "methods": "planning.catalogue",
    "plan": "planning.make",
    "repair": "recovery.repair.repair",
    "sample": "models.sample",
    "uptrain": "recovery.distil.uptrain",
    "verify": "conversion.verify",
    "vision_train": "key_driven.train",
}
"""Each public name and the module that it is imported from, on first use."""

register_lazily()

__all__ = [
    "__version__",
    "bench",
    "calibrate",
    "compare",
    "convert",
    "correlate",
    "demo",
    "evaluate",
    "export",
    "families",
    "generate",
    "inspect",
    "load",
    "methods",
    "plan",
    "repair",
    "sample",
    "uptrain",
    "verify",
    "vision_train",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gqakit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gqakit.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
