"""The allocations by name. A new one is one file and one entry here."""

from __future__ import annotations

from gqakit.planning.allocation.base import Allocation, Loss, Point, Slot, pick
from gqakit.planning.allocation.knapsack import Knapsack
from gqakit.planning.allocation.qcqa_layers import QCQALayers
from gqakit.planning.allocation.uniform import Uniform

ALLOCATIONS: dict[str, Allocation] = {
    allocation.name: allocation for allocation in (Uniform(), Knapsack(), QCQALayers())
}

__all__ = ["ALLOCATIONS", "Allocation", "Loss", "Point", "Slot", "pick"]
