"""The shapes in the core's signatures are checked while tests run (see the root conftest)."""

import jaxtyping
import pytest
import torch

from gqakit.core.attention import Projection
from gqakit.core.distances import Rotation
from gqakit.core.merging.base import HeadMerge
from gqakit.core.statistics import HeadStats, LayerStatistics, head_gram


def test_dataclass_fields_must_agree():
    with pytest.raises(jaxtyping.TypeCheckError):
        Projection(torch.zeros(4, 6, 10), torch.zeros(4, 5))


def test_gram_needs_four_axes_of_two_sizes(core_rotary):
    with pytest.raises(jaxtyping.TypeCheckError):
        HeadStats(torch.zeros(2, 6, 3, 6), torch.zeros(2, 6, 6), torch.ones(2), core_rotary)


def test_function_arguments():
    with pytest.raises(jaxtyping.TypeCheckError):
        head_gram(Projection(torch.zeros(4, 6, 10)), torch.zeros(11, 10))


def test_integers_are_no_weights():
    with pytest.raises(jaxtyping.TypeCheckError):
        HeadMerge(torch.zeros(2, 6, 6, dtype=torch.long), torch.zeros(2, 6, 6))


def test_methods_and_classmethods(core_rotary):
    with pytest.raises(jaxtyping.TypeCheckError):
        Rotation.over(torch.ones(3), torch.ones(3, 1), core_rotary)
    with pytest.raises(jaxtyping.TypeCheckError):
        Rotation.all_distances(core_rotary).forward(torch.zeros(6, 5))


def test_optional_fields_are_checked_when_given():
    with pytest.raises(jaxtyping.TypeCheckError):
        LayerStatistics(torch.eye(4), torch.eye(5))
