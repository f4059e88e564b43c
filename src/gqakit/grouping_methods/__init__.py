"""The grouping methods by name. A new method is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqakit.core.registry import Registry

if TYPE_CHECKING:
    from gqakit.grouping_methods.base import GroupingMethod

METHODS: Registry[GroupingMethod] = Registry(
    {
        "optimal": "gqakit.grouping_methods.optimal:Optimal",
        "neighbour": "gqakit.grouping_methods.neighbour:Neighbour",
        "mqa": "gqakit.grouping_methods.mqa:MQA",
        "random": "gqakit.grouping_methods.random_groups:Random",
        "weight_similarity": "gqakit.grouping_methods.weight_similarity:WeightSimilarity",
        "activation_similarity": "gqakit.grouping_methods.activation_similarity:ActivationSimilarity",
        "aligned": "gqakit.grouping_methods.aligned_similarity:AlignedSimilarity",
        "asymgqa": "gqakit.grouping_methods.asymgqa:AsymGQA",
        "keydriven": "gqakit.grouping_methods.key_driven:KeyDriven",
        "qcqa": "gqakit.grouping_methods.qcqa.method:QCQA",
    }
)
