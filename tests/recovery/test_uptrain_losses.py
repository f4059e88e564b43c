"""The losses against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gqakit.recovery.distil import losses
from gqakit.recovery.distil.losses import (
    cross_entropy,
    divergence,
    hidden_distance,
    in_chunks,
    teacher_targets,
)

VOCABULARY = 13


def logits(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, VOCABULARY, generator=generator, dtype=torch.float32)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    return (p * (p.log() - q.log())).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_full_divergence_is_its_definition(temperature: float) -> None:
    student, teacher = logits(7), logits(7, seed=1)
    found = divergence(student, teacher_targets(teacher, 0, temperature), temperature)
    expected = temperature**2 * kl(teacher / temperature, student / temperature)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kept", [VOCABULARY - 1, VOCABULARY, VOCABULARY + 5])
def test_keeping_all_tokens_or_all_but_one_is_the_full_divergence(kept: int) -> None:
    student, teacher = logits(7).requires_grad_(), logits(7, seed=1)
    full = divergence(student, teacher_targets(teacher, 0, 2.0), 2.0)
    top = divergence(student, teacher_targets(teacher, kept, 2.0), 2.0)
    assert top.item() == pytest.approx(full.item(), rel=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(top, student), torch.autograd.grad(full, student), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_fewer_tokens_see_less_of_the_divergence() -> None:
    student, teacher = logits(7), logits(7, seed=1)
    seen = [float(divergence(student, teacher_targets(teacher, k, 1.0), 1.0)) for k in (1, 3, 6, 12, 0)]
    assert seen == sorted(seen)
    assert seen[0] > 0


def test_a_student_that_is_its_teacher_diverges_by_nothing() -> None:
    same = logits(7).requires_grad_()
    for kept in (0, 4):
        loss = divergence(same, teacher_targets(same.detach(), kept, 1.5), 1.5)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        (gradient,) = torch.autograd.grad(loss, same)
        assert float(gradient.abs().max()) < 1e-5


def test_a_certain_teacher_makes_no_nan() -> None:
    teacher = torch.full((2, VOCABULARY), -1e4)
    teacher[:, 3] = 1e4
    student = logits(2).requires_grad_()
    loss = divergence(student, teacher_targets(teacher, 4, 1.0), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("size", [2, 5, 64])
def test_chunks_give_the_value_and_the_gradient_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(losses, "POSITIONS", size)
    student = logits(3, 11).requires_grad_()
    labels = torch.arange(33).view(3, 11) % VOCABULARY
    whole = 2 * cross_entropy(student[:, :10].flatten(0, 1), labels[:, :10].flatten())
    (expected,) = torch.autograd.grad(3 * whole, student)

    def term(chunk: Tensor, where: tuple[int, slice]) -> Tensor:
        ce = cross_entropy(chunk, labels[where])
        return torch.stack([2 * ce, ce])

    values = in_chunks(student, 10, term, 1)
    assert values.tolist() == pytest.approx([whole.item(), whole.item() / 2], rel=1e-6)
    (gradient,) = torch.autograd.grad(3 * values[0], student)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[:, 10].any()
    with torch.no_grad():
        assert in_chunks(student, 10, term, 1).tolist() == values.tolist()


def test_hidden_distance_is_relative_and_for_each_position() -> None:
    teacher = tuple(torch.randn(2, 5, 8) for _ in range(3))
    assert float(hidden_distance(teacher, teacher)) == 0
    larger = tuple(1.5 * state for state in teacher)
    assert float(hidden_distance(larger, teacher)) == pytest.approx(10 * 0.25, rel=1e-5)
    spiked = tuple(torch.cat([1000 * s[:, :1], s[:, 1:]], 1) for s in teacher)
    larger = tuple(1.5 * state for state in spiked)
    assert float(hidden_distance(larger, spiked)) == pytest.approx(10 * 0.25, rel=1e-5)
