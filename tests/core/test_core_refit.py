"""Refitting the output projection by ridge regression."""

import pytest
import torch
from torch import Tensor

from gqakit.core.refit import OutputMoments, guarded_refit, ridge_refit

INNER, OUT = 7, 5


def moments(heads: Tensor, target: Tensor) -> OutputMoments:
    """Sums over rows of `heads` `[n, inner]` and `target` `[n, out]`."""
    return OutputMoments(heads.T @ heads, target.T @ heads, float(target.square().sum()))


@pytest.fixture
def problem():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(400, INNER, generator=rng, dtype=torch.float64)
    truth = torch.randn(OUT, INNER, generator=rng, dtype=torch.float64)
    start = truth + 0.3 * torch.randn(OUT, INNER, generator=rng, dtype=torch.float64)
    noise = torch.randn(400, OUT, generator=rng, dtype=torch.float64)
    return a, truth, start, a @ truth.T + 0.1 * noise


def test_error_is_the_sum_of_squares(problem):
    a, _, start, y = problem
    explicit = float((y - a @ start.T).square().sum())
    assert moments(a, y).error(start) == pytest.approx(explicit)
    halves = moments(a[:100], y[:100]) + moments(a[100:], y[100:])
    assert halves.error(start) == pytest.approx(explicit)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1e-1, 10.0])
def test_ridge_lowers_the_error_it_is_fitted_on(problem, ridge):
    a, _, start, y = problem
    fit = moments(a, y)
    assert fit.error(ridge_refit(start, fit, ridge)) < fit.error(start)


def test_ridge_is_the_stated_minimum(problem):
    a, _, start, y = problem
    ridge = 0.2
    fitted = ridge_refit(start, moments(a, y), ridge).clone().requires_grad_()
    strength = ridge * float((a.T @ a).trace()) / INNER
    loss = (y - a @ fitted.T).square().sum() + strength * (fitted - start).square().sum()
    (slope,) = torch.autograd.grad(loss, fitted)
    assert slope.abs().max() < 1e-9 * loss.item()


def test_exact_where_a_solution_exists(problem):
    a, truth, start, _ = problem
    fit = moments(a, a @ truth.T)
    torch.testing.assert_close(ridge_refit(start, fit, 1e-12), truth, rtol=0, atol=1e-9)


def test_directions_never_seen_stay(problem):
    a, truth, start, _ = problem
    a = a.clone()
    a[:, 2] = 0
    fitted = ridge_refit(start, moments(a, a @ truth.T), 1e-6)
    torch.testing.assert_close(fitted[:, 2], start[:, 2], rtol=0, atol=1e-12)


def test_precision_of_the_weights_is_kept(problem):
    a, _, start, y = problem
    assert ridge_refit(start.bfloat16(), moments(a, y), 0.1).dtype == torch.bfloat16


def test_guard_chooses_the_best_held_out(problem):
    a, _, start, y = problem
    fit, held = moments(a[:200], y[:200]), moments(a[200:], y[200:])
    ridges = (1e-4, 1e-2, 1.0)
    best, chosen = guarded_refit(start, fit, held, ridges)
    errors = {ridge: held.error(ridge_refit(start, fit, ridge)) for ridge in ridges}
    assert chosen == min(errors, key=errors.__getitem__)
    assert held.error(best) == errors[chosen] < held.error(start)


def test_guard_leaves_the_weights_where_nothing_improves(problem):
    a, truth, _, _ = problem
    held = moments(a, a @ truth.T)  # the present weights are perfect there
    fit = moments(a[:9], a[:9] @ truth.T + 5.0)
    best, chosen = guarded_refit(truth, fit, held)
    assert chosen is None
    assert best is truth


@pytest.mark.parametrize("seed", range(10))
def test_guard_never_does_harm(seed):
    rng = torch.Generator().manual_seed(seed)
    a, y = torch.randn(24, INNER, generator=rng), torch.randn(24, OUT, generator=rng)
    start = torch.randn(OUT, INNER, generator=rng) / 10
    fit, held = moments(a[:12].double(), y[:12].double()), moments(a[12:].double(), y[12:].double())
    best, chosen = guarded_refit(start, fit, held)
    assert held.error(best) <= held.error(start)
    assert (chosen is None) == torch.equal(best, start)
