"""One function for each command, with the same name and the same defaults.

Every function raises a `GqakitError` with a message meant for people; `progress` is a
`gqakit.progress.Reporter`. Importing this imports torch and transformers.
"""

from __future__ import annotations

from gqakit.api.catalogue import inspect, methods
from gqakit.api.converting import ConvertResult, convert
from gqakit.api.demonstrating import demo
from gqakit.calibration.calibrate import calibrate
from gqakit.conversion.verify import verify
from gqakit.evaluation.evaluate import evaluate
from gqakit.exporters.export import ExportResult, export
from gqakit.key_driven.options import VisionOptions
from gqakit.key_driven.train import VisionResult, vision_train
from gqakit.models.generate import generate
from gqakit.planning.correlation.correlate import correlate
from gqakit.planning.make import BudgetOptions, MeasureOptions, PlanOptions, explore, plan
from gqakit.recovery.distil.options import UptrainOptions
from gqakit.recovery.distil.uptrain import UptrainResult, uptrain
from gqakit.recovery.repair.layers import RepairOptions
from gqakit.recovery.repair.repair import RepairResult, repair

__all__ = [
    "BudgetOptions",
    "ConvertResult",
    "ExportResult",
    "MeasureOptions",
    "PlanOptions",
    "RepairOptions",
    "RepairResult",
    "UptrainOptions",
    "UptrainResult",
    "VisionOptions",
    "VisionResult",
    "calibrate",
    "convert",
    "correlate",
    "demo",
    "evaluate",
    "explore",
    "export",
    "generate",
    "inspect",
    "methods",
    "plan",
    "repair",
    "uptrain",
    "verify",
    "vision_train",
]
