"""The allocations by name. A new one is one file and one entry here."""

from __future__ import annotations

from gqakit.allocation.base import Allocation
from gqakit.allocation.uniform import Uniform

ALLOCATIONS: dict[str, Allocation] = {allocation.name: allocation for allocation in (Uniform(),)}

__all__ = ["ALLOCATIONS", "Allocation"]
