"""The allocations by name. A new one is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqakit.core.registry import Registry

if TYPE_CHECKING:
    from gqakit.planning.allocation.base import Allocation

ALLOCATIONS: Registry[Allocation] = Registry(
    {
        "uniform": "gqakit.planning.allocation.uniform:Uniform",
        "knapsack": "gqakit.planning.allocation.knapsack:Knapsack",
        "qcqa_layers": "gqakit.planning.allocation.qcqa_layers:QCQALayers",
    }
)
