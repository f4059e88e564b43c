"""gqakit: trained attention checkpoints with fewer key/value heads.

One function for each command, loaded on first use, and `load` for a converted checkpoint. After `import gqakit`
transformers' own `Auto*.from_pretrained` loads `grouped` checkpoints too. Importing this imports neither torch
nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gqakit.models.load import load
from gqakit.models.registration import register_lazily

if TYPE_CHECKING:
    from gqakit.calibration.calibrate import calibrate
    from gqakit.conversion.verify import verify
    from gqakit.demonstration.demo import demo
    from gqakit.evaluation.evaluate import evaluate
    from gqakit.exporters.export import export
    from gqakit.key_driven.options import VisionOptions
    from gqakit.key_driven.train import vision_train
    from gqakit.models.generate import generate
    from gqakit.pipeline import convert
    from gqakit.planning.correlation.correlate import correlate
    from gqakit.planning.correlation.options import CorrelateOptions
    from gqakit.planning.listing import inspect, methods
    from gqakit.planning.make import BudgetOptions, MeasureOptions, explore, plan
    from gqakit.planning.options import PlanOptions
    from gqakit.recovery.distil.options import UptrainOptions
    from gqakit.recovery.distil.uptrain import uptrain
    from gqakit.recovery.repair.layers import RepairOptions
    from gqakit.recovery.repair.repair import repair

__version__ = "0.1.0"

_PUBLIC = {
    "BudgetOptions": "planning.make",
    "CorrelateOptions": "planning.correlation.options",
    "MeasureOptions": "planning.make",
    "PlanOptions": "planning.options",
    "RepairOptions": "recovery.repair.layers",
    "UptrainOptions": "recovery.distil.options",
    "VisionOptions": "key_driven.options",
    "calibrate": "calibration.calibrate",
    "convert": "pipeline",
    "correlate": "planning.correlation.correlate",
    "demo": "demonstration.demo",
    "evaluate": "evaluation.evaluate",
    "explore": "planning.make",
    "export": "exporters.export",
    "generate": "models.generate",
    "inspect": "planning.listing",
    "methods": "planning.listing",
    "plan": "planning.make",
    "repair": "recovery.repair.repair",
    "uptrain": "recovery.distil.uptrain",
    "verify": "conversion.verify",
    "vision_train": "key_driven.train",
}
"""Each public name and the module that it is imported from, on first use."""

register_lazily()

__all__ = [
    "BudgetOptions",
    "CorrelateOptions",
    "MeasureOptions",
    "PlanOptions",
    "RepairOptions",
    "UptrainOptions",
    "VisionOptions",
    "__version__",
    "calibrate",
    "convert",
    "correlate",
    "demo",
    "evaluate",
    "explore",
    "export",
    "generate",
    "inspect",
    "load",
    "methods",
    "plan",
    "repair",
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
