"""The grouping methods by name. A new method is one file and one entry here."""

from __future__ import annotations

from gqakit.methods.activation_similarity import ActivationSimilarity
from gqakit.methods.aligned_similarity import AlignedSimilarity
from gqakit.methods.asymgqa import AsymGQA
from gqakit.methods.base import GroupingMethod, LayerHeads, Sizes
from gqakit.methods.keydriven import KeyDriven
from gqakit.methods.mqa import MQA
from gqakit.methods.neighbour import Neighbour
from gqakit.methods.optimal import Optimal
from gqakit.methods.qcqa import QCQA
from gqakit.methods.random_groups import Random
from gqakit.methods.weight_similarity import WeightSimilarity

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
