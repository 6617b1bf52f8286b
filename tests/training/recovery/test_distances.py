"""Distances of a recovery: what is inside is compared so that no few numbers are all that counts."""

import pytest
import torch

from fxprune.training.recovery import distances
from fxprune.training.recovery.distances import OUTPUT_DISTANCES, Scale, bounded_square, within_reach

MASSIVE = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
MASSIVE[7] = 5000.0


def test_a_massive_activation_does_not_hide_the_others() -> None:
    """By the plain variance, an error of half a standard deviation everywhere would be a ten-thousandth."""
    held = within_reach(MASSIVE)
    assert float(held.max()) == pytest.approx(5 * float(MASSIVE.std(correction=0)), rel=0.01)
    scale = Scale(float(held.var()), mean=float(held.mean()))
    ours = MASSIVE + 0.5
    assert float(bounded_square(ours, MASSIVE, scale)) == pytest.approx(0.25 / float(held.var()), rel=0.01)
    assert 0.03 < float(bounded_square(ours, MASSIVE, scale)) < 0.3
    assert 0.25 / float(MASSIVE.var()) < 1.1e-4


def test_what_is_massive_is_compared_relative_to_itself() -> None:
    ours = MASSIVE.clone()
    ours[7] = 4500.0
    assert float(bounded_square(ours, MASSIVE, Scale(1.0))) == pytest.approx(25 * 0.1**2 / 10_000, rel=1e-3)


def test_without_massive_numbers_it_is_the_squared_difference_over_the_variance() -> None:
    theirs = MASSIVE[100:]
    assert float(bounded_square(theirs + 0.5, theirs, Scale(2.0))) == pytest.approx(0.125)
    assert torch.equal(within_reach(theirs), theirs)
    assert torch.equal(within_reach(torch.ones(3)), torch.ones(3))


@pytest.mark.parametrize("at_a_time", [1, 14, 1 << 21])
def test_the_gradient_of_a_divergence_is_that_of_its_formula(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "LOGITS_AT_A_TIME", at_a_time)
    random = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(3, 5, 7, generator=random, dtype=torch.float64) for _ in range(2))
    ours.requires_grad_()
    found = OUTPUT_DISTANCES["divergence"][0](ours, theirs, Scale(temperature=2.0))
    log, near = (theirs / 2).log_softmax(-1), (ours / 2).log_softmax(-1)
    plain = 4 * (log.exp() * (log - near)).sum(-1).mean()
    assert found.item() == pytest.approx(plain.item(), abs=1e-12)
    (one,), (other,) = (torch.autograd.grad(3 * each, ours) for each in (found, plain))
    assert torch.allclose(one, other, atol=1e-12)
    assert float(OUTPUT_DISTANCES["divergence"][0](theirs, theirs, Scale())) == 0
