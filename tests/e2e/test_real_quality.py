"""A gate for quality: what each merge rule loses on a pretrained model stays within 2 % of what was measured once.

The stored values are printed by `python benchmarks/quality_gate.py`, which says what they are of.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pretrained import fetch_or_skip

from gqakit.core.merging import RULES
from quality_gate import divergences
from zoo import SMOLLM2

pytestmark = pytest.mark.real

STORED = {
    "fold": 0.0269,
    "aligned": 0.1199,
    "aligned_norm": 0.1357,
    "mean": 0.2759,
    "mean_norm": 0.2876,
    "medoid": 0.6124,
}
WITHIN = 0.02


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """KL by merge rule."""
    return divergences(Path(fetch_or_skip(SMOLLM2)))


def test_every_rule_has_a_stored_value() -> None:
    assert STORED.keys() == set(RULES)


@pytest.mark.parametrize("rule", STORED)
def test_a_merge_rule_loses_what_it_lost(found: dict[str, float], rule: str) -> None:
    assert found[rule] == pytest.approx(STORED[rule], rel=WITHIN), found
