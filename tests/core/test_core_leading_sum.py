"""The sum of the largest eigenvalues by iteration, against all eigenvalues."""

import pytest
import torch

from gqakit.core.linalg import eigvalsh, leading_sum

RANK = 24


def gram_of(kind: str) -> torch.Tensor:
    """`[8 · 24, 8 · 24]` in float32."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    spread = torch.linspace(0.05, 2, 400)
    rows = normal(8 * RANK, 400)
    if kind == "alike":  # eight noisy copies of one head
        rows = normal(RANK, 400).repeat(8, 1) + 0.1 * rows
    if kind == "copies":
        rows = normal(RANK, 400).repeat(8, 1)
    if kind == "opposites":  # a start that adds heads up would see nothing of them
        rows = (
            normal(RANK, 400).repeat(8, 1)
            * torch.tensor([1.0, -1.0]).repeat(4).repeat_interleave(RANK)[:, None]
        )
    if kind == "few":  # fewer directions than are asked for, as of statistics of few tokens
        spread = torch.where(torch.arange(400) < RANK // 2, torch.logspace(0, -3, 400), 0.0)
    rows = rows * spread
    return rows @ rows.T / 400


@pytest.mark.parametrize("kind", ["few", "none"])
def test_a_matrix_of_a_lower_rank_has_its_whole_sum(kind):
    gram = gram_of("few") * (kind == "few")
    assert leading_sum(gram, RANK) == pytest.approx(float(gram.diagonal().double().sum()), rel=1e-3)


@pytest.mark.parametrize("kind", ["apart", "alike", "copies", "opposites"])
def test_what_is_left_comes_out_to_a_part_in_five_hundred(kind):
    gram = gram_of(kind)
    values = eigvalsh(gram.double())
    left = float(gram.diagonal().double().sum()) - leading_sum(gram, RANK)
    assert left == pytest.approx(float(values[:-RANK].sum()), rel=2e-3, abs=1e-5 * float(values.sum()))
