"""The grouping methods by name. A new method is one file and one entry here."""

from __future__ import annotations

from gqakit.grouping_methods.activation_similarity import ActivationSimilarity
from gqakit.grouping_methods.aligned_similarity import AlignedSimilarity
from gqakit.grouping_methods.asymgqa import AsymGQA
from gqakit.grouping_methods.base import GroupingMethod, LayerHeads, Sizes
from gqakit.grouping_methods.key_driven import KeyDriven
from gqakit.grouping_methods.mqa import MQA
from gqakit.grouping_methods.neighbour import Neighbour
from gqakit.grouping_methods.optimal import Optimal
from gqakit.grouping_methods.qcqa.method import QCQA
from gqakit.grouping_methods.random_groups import Random
from gqakit.grouping_methods.weight_similarity import WeightSimilarity

METHODS: dict[str, GroupingMethod] = {
    method.name: method
    for method in (
        Optimal(),
        Neighbour(),
        MQA(),
        Random(),
        WeightSimilarity(),
        ActivationSimilarity(),
        AlignedSimilarity(),
        AsymGQA(),
        KeyDriven(),
        QCQA(),
    )
}

__all__ = ["METHODS", "GroupingMethod", "LayerHeads", "Sizes"]
